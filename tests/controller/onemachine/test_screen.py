"""What `prebinder up` shows, in a terminal that is closed while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from prebinder.onemachine import stack
from prebinder.onemachine.screen import Screen


class Terminal:
    """A terminal, until it is closed."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")

    def become_stdout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the test itself: between fixture and test, pytest sets a standard output of its own."""
        monkeypatch.setattr("sys.stdout", self.stream)
        monkeypatch.setenv("TERM", "xterm")

    def read(self) -> str:
        return os.read(self._ours, 10000).decode()

    def close(self) -> None:
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()
    with contextlib.suppress(OSError):
        terminal.stream.close()


def test_a_screen_goes_on_without_its_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.become_stdout(monkeypatch)
    screen = Screen()
    assert screen.console.is_terminal
    screen.line("Ready", "bold")
    assert terminal.read().startswith("\x1b[1mReady")
    with screen.starting(), screen.step("engine") as say:
        say("before")
        terminal.close()
        say("after")
    screen.line("building", "cyan")
    with pytest.raises(OSError, match="Input/output error"):
        print("gone", flush=True)


async def test_all_is_stopped_in_order_when_the_terminal_hangs_up(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.become_stdout(monkeypatch)
    running, stopped = asyncio.Event(), asyncio.Event()

    async def parts(*_: object, **__: object) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    monkeypatch.setattr(stack, "_run", parts)
    up = asyncio.create_task(stack.run_stack(None, tmp_path / "state", 0))
    await asyncio.wait_for(running.wait(), 20)
    terminal.close()
    os.kill(os.getpid(), signal.SIGHUP)
    assert await asyncio.wait_for(up, 20) == 0
    assert stopped.is_set()
