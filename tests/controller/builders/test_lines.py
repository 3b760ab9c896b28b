"""Other programs' output as lines that are fit to store and to show."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.builders.lines import LINE_LIMIT, clean, plain, run


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("plain\n", "plain\n"),
        ("a\tb", "a\tb"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[2J\x1b[Hgone\x1b]0;title\x07", "gone"),
        ("bell\x07 null\x00 back\x08", "bell null back"),
        ("\x9b31mC1", "31mC1"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("half\x1b", "half"),
    ],
)
def test_what_is_kept(written: str, kept: str) -> None:
    assert clean(written) == kept


@given(st.text())
def test_whatever_comes_is_fit_to_store(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert clean(cleaned) == cleaned
    assert not set(plain(text)) & set(map(chr, (*range(9), *range(11, 32), *range(127, 160))))


def test_a_long_line_is_cut() -> None:
    assert clean("x" * (LINE_LIMIT + 10)).endswith("(line cut)")
    assert len(clean("x" * (LINE_LIMIT + 10))) < LINE_LIMIT + 30


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_both_streams_come_and_bad_utf8_is_replaced() -> None:
    code = "import os; os.write(1, b'out\\n'); os.write(2, b'err \\xff\\n'); os.write(1, b'no newline')"
    assert "".join(run(python(code))) == "out\nerr �\nno newline\n"


def test_a_line_without_end_comes_in_pieces() -> None:
    pieces = list(run(python("print('x' * 1_000_000, end='')")))
    assert sum(p.count("x") for p in pieces) == 1_000_000
    assert max(map(len, pieces)) < 3 * LINE_LIMIT


def test_failure_is_told_after_the_output() -> None:
    said = []
    with pytest.raises(subprocess.CalledProcessError):
        said.extend(run(python("print('last words'); raise SystemExit(3)")))


def test_abandoning_the_output_ends_the_command() -> None:
    lines = run(python("import time; print('pid', flush=True); time.sleep(1000)"))
    next(lines)
    lines.close()  # type: ignore[attr-defined]  # returns only when the process has ended
