"""Hot reload: the file on disk is followed; an invalid one never replaces the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from watchfiles import awatch

from prebinder.config.load import load
from prebinder.config.models import Configuration
from prebinder.model.failure import ConfigurationError

log = structlog.get_logger(__name__)


_READ_AT_START = ("controller", "hosts", "hub", "ledger", "registry", "site")
"""Sections of which a part at least is read once. Secrets in them are read each time."""


@dataclass(slots=True)
class LiveConfiguration:
    """The configuration in force. `problem` is set while the file on disk is invalid."""

    current: Configuration
    path: Path | None = None
    problem: str | None = None
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
            if sections := self.waiting(new):
                log.warning("configuration.restart_needed", sections=sections)
        self.current, self.problem = new, None
        return changed

    def waiting(self, new: Configuration) -> list[str]:
        """What differs from the configuration that we started with, and is not in force before a restart."""
        keys = [name for name in _READ_AT_START if getattr(new, name) != getattr(self._at_start, name)]
        return keys + (["builder.kind"] if new.builder.kind != self._at_start.builder.kind else [])

    async def follow(self, changed: Callable[[], None], stop: asyncio.Event) -> None:
        """Call `changed` after each change, until `stop` is set.

        The folder is watched, not the file: editors replace files, and Kubernetes swaps a link beside it.
        """
        if self.path is None:
            await stop.wait()
            return
        async for _ in awatch(self.path.parent, stop_event=stop, recursive=False, step=50, debounce=200):
            if self.reload():
                changed()
