"""Image names: deterministic, distinct, short enough, and BinderHub's."""

from __future__ import annotations

import hashlib
import re
import string

import escapism
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.model.images import Image, ImageName, image_name
from prebinder.model.spec import Provider, Repository, gitlab

PREFIX = "registry.example.org/binder/"
# OCI distribution specification, "Pulling manifests": <name>; the first component is the registry's host and port.
OCI_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
# Names of repositories begin so: an owner, a scheme, a gist's id.
names = st.builds(lambda first, rest: first + rest, st.sampled_from("aZ09"), st.text(max_size=400))
REVISION = "a" * 40


@given(names)
def test_any_slug_gives_a_name_that_a_registry_takes(name: str) -> None:
    image = image_name(PREFIX, Repository(Provider.GIT, name), REVISION)
    assert len(image.name) <= 255
    path = image.name.partition("/")[2]
    assert OCI_NAME.fullmatch(path), image.name
    assert image == image_name(PREFIX, Repository(Provider.GIT, name), REVISION)


@given(names, names)
def test_different_repositories_have_different_names(one: str, other: str) -> None:
    if one != other:
        first, second = (image_name(PREFIX, Repository(Provider.GIT, n), REVISION) for n in (one, other))
        assert first.name != second.name


def test_names_that_differ_only_in_what_is_escaped_or_cut_are_told_apart() -> None:
    slugs = ["a-b/c", "a_b/c", "A-b/c", "a/b-c", "x" * 300 + "/1", "x" * 300 + "/2"]
    assert (
        len({image_name(PREFIX, Repository(Provider.GITHUB, slug), REVISION).name for slug in slugs}) >= len(slugs) - 1
    )


@pytest.mark.parametrize(
    "repository",
    [
        Repository(Provider.GITHUB, "binder-examples/requirements"),
        Repository(Provider.GITHUB, "Owner/My_Repo.x"),
        Repository(Provider.GIST, "user/0123456789abcdef"),
        Repository(Provider.GIT, "https://example.org/a/b.git"),
        gitlab("group/sub-group/project"),
    ],
)
def test_names_are_binderhubs(repository: Repository) -> None:
    """BinderHub's rule written down a second time, from `_generate_build_name` and `_safe_build_slug`."""
    slug = repository.build_slug
    escaped = escapism.escape(slug, safe=set(string.ascii_letters + string.digits), escape_char="-")
    expected = f"{escaped}-{hashlib.sha256(slug.encode()).hexdigest()[:6]}".replace("_", "-").lower()
    assert image_name(PREFIX, repository, REVISION) == ImageName(PREFIX + expected, REVISION)


def test_a_name_is_the_same_in_every_version() -> None:
    image = image_name(PREFIX, Repository(Provider.GITHUB, "binder-examples/requirements"), REVISION)
    assert str(image) == f"{PREFIX}binder-2dexamples-2drequirements-55ab5c:{REVISION}"


def test_references_as_text() -> None:
    name = ImageName("registry:5000/x", "tag")
    assert str(name) == "registry:5000/x:tag"
    assert Image(name, "sha256:1").by_digest == "registry:5000/x@sha256:1"
