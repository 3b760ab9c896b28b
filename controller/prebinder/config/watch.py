"""Hot reload: the file on disk is followed; an invalid one never replaces the last good one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import structlog
from watchfiles import awatch

from prebinder.config.load import load
from prebinder.config.models import Configuration
from prebinder.model.failure import ConfigurationError

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 5.0

# What each half reads once: sections, or keys of them. Secrets in them are read each time. The chart knows them too
# (charts/prebinder/templates/_config.tpl): a change of them replaces the half's pods.
CONTROLLER_READS_ONCE = ("builder.kind", "controller", "hosts", "ledger", "registry")
ENDPOINT_READS_ONCE = (
    "controller",
    "hosts",
    "hub",
    "polling.click_budget",
    "polling.stale_after",
    "registry",
    "site",
)


@dataclass(slots=True)
class LiveConfiguration:
    """The configuration in force. `problem` is set while the file on disk is invalid."""

    current: Configuration
    path: Path | None = None
    problem: str | None = None
    read_once: tuple[str, ...] = tuple(sorted({*CONTROLLER_READS_ONCE, *ENDPOINT_READS_ONCE}))
    """What of it is not in force before a restart."""
    _at_start: Configuration = field(init=False)

    def __post_init__(self) -> None:
        self._at_start = self.current

    def reload(self) -> bool:
        """Read the file again. True when another valid configuration is in force or `problem` changed."""
        if self.path is None:
            return False
        try:
            new = load(self.path)
        except ConfigurationError as error:
            changed = self.problem != str(error)
            self.problem = str(error)
            if changed:
                log.error("configuration.invalid", problem=self.problem, kept="the last good one")
            return changed
        changed = new != self.current or self.problem is not None
        if changed:
            log.info("configuration.loaded", repositories=len(new.repositories))
            if keys := self.waiting(new):
                log.warning("configuration.restart_needed", keys=keys)
        self.problem = None
        if new != self.current:  # else it stays the same object, so that nobody takes it for another one
            self.current = new
        return changed

    def start(self) -> Configuration:
        """The configuration that is read once, from now on."""
        self._at_start = self.current
        return self.current

    def waiting(self, new: Configuration) -> list[str]:
        """What differs from the configuration that we started with, and is not in force before a restart."""
        return [key for key in self.read_once if attrgetter(key)(new) != attrgetter(key)(self._at_start)]

    async def follow(self, changed: Callable[[], None], stop: asyncio.Event) -> None:
        """Call `changed` after each change since it was read, until `stop` is set, whatever happens to the watch.

        The folder is watched, not the file: editors replace files, and Kubernetes swaps a link beside it.
        """
        if self.path is None:
            await stop.wait()
            return
        polling, problem = False, None
        while not stop.is_set():
            try:
                await self._watch(self.path, changed, stop, polling=polling)
            except Exception as error:
                if problem != (problem := repr(error)):
                    log.exception("configuration.watch", again_after=_LOOK_SECONDS)
                polling = not isinstance(error, FileNotFoundError)  # else the system may have no watch left for us
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)

    async def _watch(self, path: Path, changed: Callable[[], None], stop: asyncio.Event, *, polling: bool) -> None:
        """Look at the file now and after each change, until another folder stands in the place of its folder.

        What the watch does not see is seen by a look now and then."""
        folder, seen = _stamp(path.parent)[:2], _stamp(path)
        if self.reload():
            changed()
        watch = awatch(
            path.parent,
            stop_event=stop,
            recursive=False,
            step=50,
            debounce=200,
            rust_timeout=int(_LOOK_SECONDS * 1000),
            yield_on_timeout=True,
            force_polling=polling or None,
        )
        async with contextlib.aclosing(watch):
            async for changes in watch:
                before, seen = seen, _stamp(path)
                if (changes or seen != before) and self.reload():
                    changed()
                if _stamp(path.parent)[:2] != folder:
                    return


def _stamp(path: Path) -> tuple[int, ...]:
    """Which file stands there, and as of when; nothing when there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
