"""The `prebinder` command as people run it: a process of its own, with nothing of ours in its environment.

done = await prebinder("status", "--state", str(folder))
done.code, done.output, done.errors
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PREBINDER = Path(sys.executable).parent / "prebinder"


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A person's environment with an empty home, and none of our own settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREBINDER_")}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return {**kept, "HOME": str(folder), "XDG_CACHE_HOME": cache, "NO_COLOR": "1", **(more or {})}


@contextlib.asynccontextmanager
async def started(
    *words: str, folder: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command while it runs, the leader of a group of its own; killed at the end in any case."""
    process = await asyncio.create_subprocess_exec(
        str(PREBINDER),
        *words,
        cwd=folder,
        env=environment(folder, env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def prebinder(*words: str, folder: Path, env: Mapping[str, str] | None = None, timeout: float = 60) -> Done:
    """Run it to its end."""
    async with started(*words, folder=folder, env=env) as process:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, output.decode(), errors.decode())
