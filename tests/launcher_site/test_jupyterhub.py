"""What the Hub lets a launch ask for, and how users are named."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder_site.hub import user_name
from prebinder_site.jupyterhub import check_options

PREFIX = "registry.test/binder/"
GOOD = {"image": f"{PREFIX}course-ab12cd:{'1' * 40}", "token": "x" * 43}


@pytest.mark.parametrize(
    "image",
    [
        f"{PREFIX}git-3a-2f-2fhost-2fr-ab12cd:{'a' * 40}",
        f"{PREFIX}course@sha256:{'a' * 64}",
        f"{PREFIX}course:tag@sha256:{'a' * 64}",
    ],
)
def test_images_below_the_prefix_are_started(image: str) -> None:
    assert check_options({**GOOD, "image": image}, PREFIX).image == image


@pytest.mark.parametrize(
    "change",
    [
        {"image": "docker.io/library/python:3"},
        {"image": f"evil/{PREFIX}x:1"},
        {"image": f"{PREFIX}x:1 --privileged"},
        {"image": f"{PREFIX}x\n:1"},
        {"image": f"{PREFIX}x@sha256:{'a' * 63}"},
        {"image": None},
        {"image": [f"{PREFIX}x:1"]},
        {"token": "short"},
        {"token": "a b" * 20},
        {"token": ""},
        {"binder_request": "v2/gh/x\nEVIL=1"},
        {"repo_url": "x" * 5000},
    ],
)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"images|user options?"):
        check_options({**GOOD, **change}, PREFIX)


@pytest.mark.parametrize("options", [None, {}, [], "image", {"token": "x" * 43}])
def test_a_launch_without_image_or_token_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="user options"):
        check_options(options, PREFIX)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/Ada/Course", "ada-course-r"),
        ("https://git.test/a/b.git", "a-b-r"),
        ("git@host.test:ada/course.git", "ada-course-r"),
        ("https://git.test/%C3%A9/", "binder-r"),
    ],
)
def test_users_are_named_for_their_repository(url: str, name: str) -> None:
    assert user_name(url, lambda _: "r") == name


@given(st.text(max_size=300))
def test_any_repository_gives_a_name_that_the_hub_and_a_container_accept(url: str) -> None:
    try:
        name = user_name(url, lambda length: "r" * length)
    except ValueError:
        # urlsplit refuses some brackets; a repository's URL has been checked before it comes here.
        return
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert len(name) <= 41
