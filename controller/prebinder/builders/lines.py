"""Output of other programs as lines that are fit to store and to show.

Guarantees: valid UTF-8, no control characters but tab, newline and colours (ANSI SGR), no line over 64 kB, whatever
came in. A line that was rewritten in place (carriage returns, as progress bars do) is kept as it stood at its end.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

LINE_LIMIT = 64 * 1024
_CUT = " … (line cut)"
_CHUNK = 64 * 1024

# ECMA-48: control sequences (CSI … final byte), operating system commands (OSC … BEL or ST), other two-byte escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[0-9;]*m)|[\ud800-\udfff]")
_INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069]")  # direction overrides: text that reads as other text


def clean(text: str) -> str:
    """One or more lines without what could harm a terminal, a page or a reader."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        rewritten = line.rstrip("\r").rpartition("\r")[2]
        shown = _ESCAPE.sub(lambda m: m[0] if _COLOUR.fullmatch(m[0]) else "", rewritten)
        shown = _INVISIBLE.sub("", _CONTROL.sub("", shown))
        lines.append(shown if len(shown) <= LINE_LIMIT else shown[:LINE_LIMIT] + _CUT)
    return "\n".join(lines)


def plain(text: str) -> str:
    """The same without colours."""
    return _COLOUR.sub("", clean(text))


def run(command: Sequence[str], **options: Any) -> Iterator[str]:
    """Run a command, yielding its output (both streams) as it comes: whole lines, several at a time when many come.

    A line of more than 64 kB comes in pieces, so that memory stays bounded. Raises CalledProcessError when the command
    fails.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, **options
    ) as process:
        assert process.stdout is not None
        rest = b""
        try:
            while chunk := process.stdout.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                while len(rest) > LINE_LIMIT:
                    lines.append(rest[:LINE_LIMIT])
                    rest = rest[LINE_LIMIT:]
                if lines:
                    yield clean(b"\n".join(lines).decode("utf-8", "replace")) + "\n"
            if rest:
                yield clean(rest.decode("utf-8", "replace")) + "\n"
            code = process.wait()
        except BaseException:  # nobody reads on: the command is not waited for
            process.kill()
            raise
    if code != 0:
        raise subprocess.CalledProcessError(code, list(command))
