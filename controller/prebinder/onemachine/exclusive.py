"""One process a state folder, by a lock that dies with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from prebinder.config.state import StateFolder
from prebinder.model.failure import EngineError


class AlreadyRunning(EngineError):
    """Another process uses the state folder."""


@contextlib.contextmanager
def exclusive(state: StateFolder) -> Iterator[None]:
    """Hold the state folder while this is open. Raises AlreadyRunning, with the other's process id."""
    with (state.run / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "?"
            raise AlreadyRunning(
                f"Prebinder runs already with the state folder {state.root} (process {owner}). "
                "Use that one, stop it, or choose another folder with --state."
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
