"""Long-lived child processes that end with us, however we end, and are started again when they end by themselves.

Each child is the leader of a group of its own and gets SIGTERM from the kernel when we die (setpriv(1), prctl(2)).
A note of each is kept on disk, so that the next start can end what did not heed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from prebinder.model.failure import HubError

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LOG_LIMIT = 20 * 2**20


def end_leftovers(notes: Path) -> None:
    """End the children of an earlier run that are noted in the folder `notes` and still there (blocking, seconds).

    A process is told by its id and the moment it began: an id alone may be somebody else's by now.
    """
    found = []
    for note in notes.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            pid, created = note.read_text().split()
            process = psutil.Process(int(pid))
            if abs(process.create_time() - float(created)) < 1:
                log.warning("child.leftover", pid=process.pid, name=note.stem)
                process.terminate()
                found.append(process)
        note.unlink(missing_ok=True)
    _, alive = psutil.wait_procs(found, timeout=3)
    for process in alive:
        with contextlib.suppress(psutil.Error, OSError):
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=3)


class Child:
    """One program, kept running between `start` and `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log_file: Path,
        ready: Callable[[], Awaitable[bool]],
        stop_signal: signal.Signals = signal.SIGTERM,
        start_timeout: float = 60.0,
        notes: Path | None = None,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._folder = folder
        self._log_file = log_file
        self._ready = ready
        self._stop_signal = stop_signal
        self._start_timeout = start_timeout
        self._note = notes / f"{name.lower().replace(' ', '-').replace(chr(39), '')}.pid" if notes else None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it answers. Raises HubError with its last words when it does not."""
        await self._launch()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self, patience: float = 3.0) -> None:
        """End it in its own way, and after `patience` seconds with its whole group."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        await self._end(patience)

    async def _launch(self) -> None:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self._log_file.stat().st_size > _LOG_LIMIT:
                self._log_file.replace(self._log_file.with_suffix(".old.log"))
        with self._log_file.open("ab") as output:
            start_of_words = output.tell()
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM"),
                *self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if self._note is not None:
            with contextlib.suppress(psutil.Error):
                created = psutil.Process(self._process.pid).create_time()
                self._note.write_text(f"{self._process.pid} {created}\n")
        try:
            async with asyncio.timeout(self._start_timeout):
                pause = 0.02
                while not await self._ready():
                    if self._process.returncode is not None:
                        raise HubError(
                            f"{self.name} ended at once: {self._last_words(start_of_words)} More in {self._log_file}."
                        )
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, 0.25)
        except TimeoutError:
            await self._end(1)
            raise HubError(
                f"{self.name} did not answer within {self._start_timeout:.0f} seconds. More in {self._log_file}."
            ) from None
        except BaseException:
            await self._end(1)
            raise

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            assert self._process is not None
            code = await self._process.wait()
            log.error("child.ended", name=self.name, code=code, next=f"started again in {pause:.1f} s")
            await asyncio.sleep(pause)
            try:
                await self._launch()
                pause = _FIRST_PAUSE
            except (HubError, OSError) as error:
                log.error("child.not_started", name=self.name, reason=str(error))
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _end(self, patience: float) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self._stop_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await process.wait()
        # Also what it left in its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    def _last_words(self, start: int) -> str:
        """The last line that it wrote since `start`, for a message."""
        with contextlib.suppress(OSError), self._log_file.open("rb") as file:
            file.seek(start)
            lines = [line.strip() for line in file.read(65536).decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return lines[-1][:300].rstrip(".") + "."
        return "it said nothing."
