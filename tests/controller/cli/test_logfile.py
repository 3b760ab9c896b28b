"""Prebinder's own log: one JSON object a line, and never the end of what it tells of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, sys
from pathlib import Path
import structlog
from prebinder.cli.logfile import log_to

log_to(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
for _ in range(3):
    structlog.get_logger("ours").warning("something.happened", what="x" * 10000)
    logging.getLogger("theirs").warning("something else")
print("still here")
"""


def run(*words: str, stderr: int | None = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=60,
        check=True,
    )


def test_lines_are_json_also_those_of_libraries(tmp_path: Path) -> None:
    file = tmp_path / "log" / "prebinder.log"
    run(str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["something.happened", "something else"] * 3
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert [json.loads(line)["level"] for line in run().stderr.splitlines()] == ["warning"] * 6


def test_a_full_disk_ends_nothing() -> None:
    done = run("/dev/full")
    assert done.stdout == "still here\n"
    assert "Traceback" not in done.stderr


def test_a_reader_that_went_away_ends_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        assert run(stderr=full.fileno()).stdout == "still here\n"
