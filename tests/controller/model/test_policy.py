"""Which refs are wanted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.model.catalogue import RefKind
from prebinder.model.policy import Policy, Ref, Refs, check_tag_pattern, newest_first, wanted

REVISION = "a" * 40
versions = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), unique=True, min_size=1)


def tags(*names: str) -> tuple[Ref, ...]:
    return tuple(Ref(name, RefKind.TAG, REVISION) for name in names)


def branches(*names: str) -> tuple[Ref, ...]:
    return tuple(Ref(name, RefKind.BRANCH, REVISION) for name in names)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("release", ["1.0", "v2.3.4", "2026.11"], ["v1.0rc1", "nightly", "1.0.dev1"]),
        (">=2.0", ["2.0", "v3.1"], ["1.9", "v1", "latest"]),
        (">=2.0,<3", ["2.5"], ["3.0", "1.0"]),
        ("~=1.4", ["1.4.9", "v1.5"], ["2.0", "1.3"]),
        ("v*", ["v1", "vanilla"], ["1.0", "x"]),
        ("stable", ["stable"], ["Stable", "stable2"]),
    ],
)
def test_tag_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    policy = Policy(branches=(), tags=(pattern,))
    assert {r.name for r in wanted(policy, Refs(tags(*yes, *no), "main"))} == set(yes)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("HEAD",), ["trunk"]),
        (("teach/*",), ["teach/a", "teach/b/c"]),
        (("HEAD", "teach/?"), ["trunk", "teach/a"]),
        (("*",), ["trunk", "Trunk", "teach/a", "teach/b/c"]),
        ((), []),
    ],
)
def test_branch_patterns(patterns: tuple[str, ...], names: list[str]) -> None:
    refs = Refs(branches("teach/b/c", "trunk", "teach/a", "Trunk"), "trunk")
    got = [r.name for r in wanted(Policy(branches=patterns, tags=()), refs)]
    assert sorted(got) == sorted(names)
    if "trunk" in got:
        assert got[0] == "trunk"


@given(versions, st.randoms())
def test_versions_are_ordered_as_versions_however_they_come(
    numbers: list[tuple[int, int]], chance: random.Random
) -> None:
    names = [f"v{major}.{minor}" for major, minor in sorted(numbers, reverse=True)]
    shuffled = [*names, "zebra"]
    chance.shuffle(shuffled)
    assert [r.name for r in newest_first(tags(*shuffled))] == [*names, "zebra"]


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=10)))
def test_any_pattern_that_is_taken_can_be_applied(pattern: str, names: list[str]) -> None:
    try:
        check_tag_pattern(pattern)
    except ValueError:
        return
    refs = Refs((*tags(*names), *branches(*names)), names[0] if names else None)
    assert set(wanted(Policy(branches=(pattern,), tags=(pattern,)), refs)) <= set(refs.refs)


def test_a_bad_version_specifier_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match=r"write for example >=2\.0,<3"):
        check_tag_pattern(">=two")


def test_where_the_default_branch_stands() -> None:
    assert Refs(branches("main"), "main").head() == REVISION
    assert Refs(branches("main"), "other").head() is None
    assert Refs((), None).head() is None
