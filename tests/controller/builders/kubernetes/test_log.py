"""A container's bytes as a build's log."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.builders.child import Step
from prebinder.builders.kubernetes.log import BuildLog
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, FailureKind
from tests.support.scripted_pod import scripted_order

ORDER = scripted_order("", log_limit=10_000)


def line(message: str, phase: str | None = None) -> bytes:
    return json.dumps({"message": message, **({"phase": phase} if phase else {})}).encode() + b"\n"


def said(log: BuildLog, data: bytes) -> list[tuple[Phase, str]]:
    return [(p.phase, p.message) for p in (*log.feed(data), *log.end())]


def test_phases_never_go_back() -> None:
    data = line("a", "fetching") + line("b", "building") + line("c", "fetching") + line("d") + line("e", "pushing")
    assert said(BuildLog(ORDER), data) == [
        (Phase.FETCHING, "a\n"),
        (Phase.BUILDING, "b\nc\nd\n"),
        (Phase.PUSHING, "e\n"),
    ]


def test_what_is_no_json_is_shown_as_it_is() -> None:
    assert said(BuildLog(ORDER), b"Killed\n\xff\n") == [(Phase.FETCHING, "Killed\n�\n")]


def test_the_last_word_is_kept_and_not_shown() -> None:
    log = BuildLog(ORDER)
    data = line("oops") + b'{"failed": {"step": "clone", "message": "away"}}\n'
    assert said(log, data) == [(Phase.FETCHING, "oops\n")]
    assert log.failed is not None
    assert log.failed.step is Step.CLONE
    assert list(log.tail) == ["oops"]


def test_an_unfinished_last_line_is_told_at_the_end() -> None:
    log = BuildLog(ORDER)
    assert log.feed(b"half") == []
    assert [p.message for p in log.end()] == ["half\n"]


def test_a_log_without_end_ends_the_build() -> None:
    with pytest.raises(BuildFailed) as caught:
        BuildLog(ORDER).feed(line("x" * 500) * 30)
    assert caught.value.kind is FailureKind.LOG_FLOOD


def test_a_line_without_end_takes_no_memory_without_end() -> None:
    log = BuildLog(ORDER)

    def write_on() -> None:
        for _ in range(300):
            log.feed(b"x" * 65536)

    with pytest.raises(BuildFailed):
        write_on()


@given(
    st.lists(
        st.one_of(
            st.builds(line, st.text(max_size=30), st.sampled_from([None, "fetching", "building", "pushing", "odd"])),
            st.binary(max_size=20),
        ),
        max_size=20,
    ),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_the_same_bytes_are_the_same_text_however_they_come_in_pieces(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(lines)
    whole, pieces = BuildLog(ORDER), BuildLog(ORDER)
    one = "".join(message for _, message in said(whole, data))
    two = ""
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        two += "".join(p.message for p in pieces.feed(piece))
    two += "".join(message for _, message in said(pieces, data))
    assert one == two
