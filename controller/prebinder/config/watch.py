"""Hot reload: the file on disk is followed; an invalid one never replaces the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from watchfiles import awatch

from prebinder.config.load import load
from prebinder.config.models import Configuration
from prebinder.model.failure import ConfigurationError

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class LiveConfiguration:
    """The configuration in force. `problem` is set while the file on disk is invalid."""

    current: Configuration
    path: Path | None = None
    problem: str | None = None

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
        self.current, self.problem = new, None
        return changed

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
