"""Writes the state of a build to its commit, where the Git host does that (`hosts.github.report_status`).

The states of one commit are written one after the other, so that the last one stays; one that is no longer the newest
when its turn comes is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from prebinder.config import LiveConfiguration
from prebinder.hosts.base import CommitState
from prebinder.model.events import BuildRecord, BuildState
from prebinder.model.failure import PrebinderError
from prebinder.model.links import launch_path
from prebinder.model.spec import parse_spec
from prebinder.reconcile.rounds import Rounds

log = structlog.get_logger(__name__)

_TOLD = {
    BuildState.QUEUED: (CommitState.PENDING, "The image is waiting to be built"),
    BuildState.RUNNING: (CommitState.PENDING, "The image is being built"),
    BuildState.READY: (CommitState.SUCCESS, "The image is ready: Binder opens at once"),
    BuildState.FAILED: (CommitState.FAILURE, ""),
    BuildState.CANCELLED: (CommitState.ERROR, "The build was cancelled"),
}


class Statuses:
    """Tells each state of a build once. `spawn` runs what nobody waits for."""

    def __init__(
        self, configuration: LiveConfiguration, rounds: Rounds, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._live = configuration
        self._rounds = rounds
        self._spawn = spawn
        self._told: dict[str, tuple[str, CommitState]] = {}
        self._next: dict[tuple[str, str], tuple[BuildRecord, CommitState, str]] = {}
        """By repository and revision: the newest state, until its writing begins."""
        self._writing: set[tuple[str, str]] = set()

    def tell(self, record: BuildRecord) -> None:
        """Begin to write the state of a build to its commit. Problems are logged."""
        if not self._live.current.hosts.github.report_status or not record.repository.startswith("gh/"):
            return
        state, words = _TOLD[record.state]
        if self._told.get(record.repository) == (record.id, state) and not record.state.finished:
            return
        self._told[record.repository] = (record.id, state)
        words = words or (record.failure.heading if record.failure else "The build failed")
        commit = (record.repository, record.revision)
        self._next[commit] = (record, state, words)
        if commit not in self._writing:
            self._writing.add(commit)
            self._spawn(self._write_all(commit))

    async def _write_all(self, commit: tuple[str, str]) -> None:
        try:
            while news := self._next.pop(commit, None):
                await self._write(*news)
        finally:
            self._writing.discard(commit)

    async def _write(self, record: BuildRecord, state: CommitState, words: str) -> None:
        provider, _, name = record.repository.partition("/")
        repository = parse_spec(provider, f"{name}/{record.revision}").repository
        site = self._live.current.site.url
        target = site.rstrip("/") + launch_path(repository, record.revision) if site else None
        host = self._rounds.host(repository)
        try:
            self._rounds.check_pause(repository, "status")
            await self._rounds.ask(
                repository, "status", host.report_status(repository, record.revision, state, words, target)
            )
        except PrebinderError as error:
            log.warning("status.problem", repository=record.repository, problem=str(error))
