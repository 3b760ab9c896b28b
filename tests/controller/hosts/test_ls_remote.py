"""What servers say of their refs becomes refs that a Binder URL can name, or a clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.hosts.ls_remote import MAX_REFS, parse, to_refs
from prebinder.model.catalogue import RefKind
from prebinder.model.failure import HostUnavailable
from prebinder.model.policy import Ref

URL = "https://git.example.org/course.git"
ONE, TWO, THREE = "1" * 40, "2" * 40, "3" * 40


def test_an_annotated_tag_is_peeled() -> None:
    output = f"{ONE}\trefs/tags/v1\n{TWO}\trefs/tags/v1^{{}}\n{THREE}\trefs/tags/light\n".encode()
    refs = to_refs(*parse(output, URL), url=URL)
    assert refs.refs == (Ref("v1", RefKind.TAG, TWO), Ref("light", RefKind.TAG, THREE))


def test_the_default_branch_is_what_head_stands_for() -> None:
    output = f"ref: refs/heads/trunk\tHEAD\n{ONE}\tHEAD\n{ONE}\trefs/heads/main\n{ONE}\trefs/heads/trunk\n".encode()
    assert to_refs(*parse(output, URL), url=URL).default_branch == "trunk"


def test_a_server_that_does_not_tell_has_the_branch_at_heads_commit() -> None:
    output = f"{TWO}\tHEAD\n{ONE}\trefs/heads/main\n{TWO}\trefs/heads/trunk\n".encode()
    assert to_refs(*parse(output, URL), url=URL).default_branch == "trunk"


def test_a_default_branch_that_does_not_exist_yet_is_none() -> None:
    output = f"ref: refs/heads/main\tHEAD\n{ONE}\trefs/heads/other\n".encode()
    assert to_refs(*parse(output, URL), url=URL).default_branch is None


def test_an_empty_repository_has_no_refs() -> None:
    refs = to_refs(*parse(b"", URL), url=URL)
    assert refs.refs == ()
    assert refs.default_branch is None


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9", b"-option", b"a..b", b"x" * 300, b"a b", b"a\x1b[31m", b"a^b", b"refs\xff"],
)
def test_a_name_that_no_link_can_hold_is_left_out_and_the_others_stay(name: bytes) -> None:
    output = ONE.encode() + b"\trefs/heads/" + name + b"\n" + f"{TWO}\trefs/heads/good\n".encode()
    assert to_refs(*parse(output, URL), url=URL).refs == (Ref("good", RefKind.BRANCH, TWO),)


def test_refs_that_are_neither_branches_nor_tags_are_left_out() -> None:
    output = f"{ONE}\trefs/pull/1/head\n{ONE}\trefs/notes/commits\n".encode()
    assert to_refs(*parse(output, URL), url=URL).refs == ()


def test_too_many_refs_are_refused_with_their_number() -> None:
    found = {f"refs/heads/b{number}": ONE for number in range(MAX_REFS + 1)}
    with pytest.raises(HostUnavailable, match="50001 branches and tags"):
        to_refs(found, None, url=URL)


@given(st.binary(max_size=400))
def test_whatever_a_server_says_it_is_refs_or_a_host_error(output: bytes) -> None:
    try:
        refs = to_refs(*parse(output, URL), url=URL)
    except HostUnavailable:
        return
    assert all(len(ref.revision) in (40, 64) for ref in refs.refs)
