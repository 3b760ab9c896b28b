"""The mount tables of processes (proc(5), mountinfo). What runs in a build names mount points as it likes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of a mount table."""

    point: Path
    text: str
    """The whole line; bytes that are no UTF-8 as `os.fsdecode` gives them."""


def mounts(process: int | str = "self") -> list[Mount]:
    """What is mounted for a process. Raises OSError when there is no such process."""
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_bytes().split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 4:
            point = _ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), fields[4])
            found.append(Mount(Path(os.fsdecode(point)), os.fsdecode(line)))
    return found
