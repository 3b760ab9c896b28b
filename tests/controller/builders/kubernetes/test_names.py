"""Names and labels of build Jobs: deterministic, distinct, valid whatever repositories and refs are called."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from prebinder.builders.kubernetes.names import job_name, labels, notes, selector
from prebinder.model.images import ImageName, image_name
from prebinder.model.spec import Provider, Repository
from tests.support.build_orders import an_order

# RFC 1123, as Kubernetes checks names and labels (apimachinery, pkg/util/validation).
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
PREFIX = "registry.example.org/binder/"

repositories = st.builds(Repository, st.sampled_from(list(Provider)), st.text(min_size=1).map(lambda t: f"a/{t}"))
revisions = st.text("0123456789abcdef", min_size=40, max_size=40)
images = st.builds(lambda repository, revision: image_name(PREFIX, repository, revision), repositories, revisions)
anything = st.builds(ImageName, st.text(min_size=1), st.text(min_size=1))
instances = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True)


@given(instances, images | anything)
def test_a_name_is_a_dns_label_and_always_the_same(instance: str, image: ImageName) -> None:
    name = job_name(instance, image)
    assert len(name) <= 63
    assert DNS_LABEL.fullmatch(name), name
    assert name == job_name(instance, ImageName(image.name, image.tag))


@given(instances, images | anything, instances, images | anything)
def test_other_images_and_instances_have_other_names(one: str, first: ImageName, other: str, second: ImageName) -> None:
    assert (job_name(one, first) == job_name(other, second)) == ((one, first) == (other, second))


def test_names_that_differ_only_beyond_what_fits_are_told_apart() -> None:
    long = [ImageName(PREFIX + "x" * 300 + end, "a" * 40) for end in "12"]
    revisions_of_one = [ImageName(PREFIX + "x", "a" * 39 + end) for end in "12"]
    assert len({job_name("prebinder", image) for image in (*long, *revisions_of_one)}) == 4


def test_a_person_can_tell_repository_and_revision_from_the_name() -> None:
    name = job_name("prebinder", ImageName(PREFIX + "ada-course-0a1b2c", "0123456789" * 4))
    assert name.startswith("prebinder-ada-course-0a1b2c-01234567-")


@given(repositories, st.text(min_size=1, max_size=300), st.sampled_from(["f" * 40, "0" * 64]))
def test_every_label_is_valid_and_the_rest_is_an_annotation(repository: Repository, ref: str, revision: str) -> None:
    order = an_order(repository=repository, ref=ref, revision=revision)
    for key, value in labels("prebinder", order).items():
        assert len(value) <= 63, key
        assert LABEL_VALUE.fullmatch(value), (key, value)
    assert notes(order)["prebinder/ref"] == ref
    assert notes(order)["prebinder/repository"] == str(repository)
    assert notes(order)["prebinder/revision"] == revision


def test_the_selector_finds_what_the_labels_mark_and_no_other_instance() -> None:
    wanted = dict(part.split("=") for part in selector("one").split(","))
    assert wanted.items() <= labels("one", an_order()).items()
    assert not wanted.items() <= labels("two", an_order()).items()
