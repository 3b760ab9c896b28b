"""A tree of processes is ended whole, also while it changes under our hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

from prebinder.processes import end, kill_tree, runs

# Processes that begin and end all the time, two levels below the one that is killed.
_RESTLESS = """
import subprocess, sys
many = [subprocess.Popen(["sh", "-c", "for i in $(seq 3000); do true & true & sh -c : & wait; done"]) for _ in range(8)]
print("begins", flush=True)
many[0].wait()
"""


@pytest.mark.parametrize("_", range(3))
def test_a_tree_that_changes_all_the_time_ends_whole(_: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _RESTLESS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        below = psutil.Process(process.pid).children(recursive=True)
        kill_tree(process.pid)
        assert process.wait(timeout=10) == -9
        assert [p for p in below if runs(p)] == []


def test_a_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    kill_tree(process.pid)


def test_a_process_that_vanishes_while_we_look_saves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = psutil.Process.children
    with subprocess.Popen(["sleep", "1000"]) as process, subprocess.Popen(["true"]) as other:
        vanished = psutil.Process(other.pid)
        other.wait()
        monkeypatch.setattr(psutil.Process, "children", lambda p, recursive=False: [vanished, *seen(p, recursive)])
        kill_tree(process.pid)
        assert process.wait(timeout=10) == -9


_LOUD = "import sys, time; sys.stderr.write('x' * 10**6); sys.stderr.flush(); time.sleep(1000)"


@pytest.mark.parametrize(
    "command",
    [(sys.executable, "-c", _LOUD), ("sh", "-c", "echo begins >&2; sleep 30 & sleep 1000")],
    ids=["unread", "held-open"],
)
async def test_the_end_of_a_process_is_not_waited_for_on_its_pipes(command: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    await process.stderr.read(1)
    try:
        async with asyncio.timeout(10):
            await end(process)
        assert not psutil.pid_exists(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
