"""The end of other programs, whatever they do while they are ended."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil


async def end(process: asyncio.subprocess.Process) -> int:
    """Kill a process if it still runs, and wait until it is gone; its exit code.

    Our ends of its pipes are closed first. asyncio's `wait` returns only after the end of the pipes (a rule of
    `BaseSubprocessTransport`), and that never comes when nobody reads what is in them, or a descendant holds them open.
    """
    process._transport.close()  # type: ignore[attr-defined]
    return await process.wait()


def kill_tree(pid: int, patience: float = 10.0) -> None:
    """End a process and everything below it (blocking, `patience` seconds at most); nothing when it is gone.

    It is stopped first, so that it cannot start more; a build's process is the reaper of its orphans, so that all are
    found below it. Whatever vanishes while we look, the process itself is always killed: it must not stay stopped.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        try:
            top.suspend()
            kill_below(top, patience)
        finally:
            top.kill()


def kill_below(top: psutil.Process, patience: float = 10.0) -> None:
    """Kill every process below `top` until none runs. Raises psutil.NoSuchProcess when `top` is gone."""
    deadline = time.monotonic() + patience
    while (below := [p for p in top.children(recursive=True) if runs(p)]) and time.monotonic() < deadline:
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=0.2)


def runs(process: psutil.Process) -> bool:
    """Whether it is there and no zombie; one that vanishes while we ask does not run."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
