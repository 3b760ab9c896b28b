"""When each repository is looked at: an interval with jitter, at once when a webhook asks, later when a host asks.

A round never runs twice at the same time for one repository; one that is asked for meanwhile follows at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

Round = Callable[[str, str], Awaitable[None]]
"""Called with the repository and the cause: `schedule` or `webhook`."""


class Schedule:
    """The times of the rounds. `round_of` must raise nothing."""

    def __init__(self, round_of: Round) -> None:
        self._round_of = round_of
        self._scheduler = AsyncIOScheduler(timezone=UTC, executors={"default": AsyncIOExecutor()})
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._stopping = False
        self._again: dict[str, str] = {}
        self._cause: dict[str, str] = {}
        self._rhythm: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        self._scheduler.start()

    async def stop(self) -> None:
        """Running rounds are cancelled, and have ended when this returns."""
        self._stopping = True
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, repositories: Iterable[str], interval: float, jitter: float) -> None:
        """Look at exactly these from now on; at new ones at once."""
        wanted = set(repositories)
        have = {job.id for job in self._scheduler.get_jobs()}
        for gone in have - wanted:
            self._scheduler.remove_job(gone)
        for key in wanted:
            if key not in have:
                self._scheduler.add_job(
                    self._run,
                    self._trigger(interval, jitter),
                    args=(key,),
                    id=key,
                    next_run_time=datetime.now(UTC),
                    coalesce=True,
                    max_instances=1,
                    misfire_grace_time=None,
                )
            elif (interval, jitter) != self._rhythm:
                self._scheduler.reschedule_job(key, trigger=self._trigger(interval, jitter))
        self._rhythm = (interval, jitter)

    def now(self, repository: str, cause: str) -> None:
        """A round at once, or right after the one that runs."""
        if repository in self._running:
            self._again[repository] = cause
            return
        self._cause[repository] = cause
        self.later(repository, 0.0)

    def later(self, repository: str, seconds: float) -> None:
        """The next round after a pause; then in the usual rhythm."""
        try:
            self._scheduler.modify_job(repository, next_run_time=datetime.now(UTC) + timedelta(seconds=seconds))
        except JobLookupError:
            self._cause.pop(repository, None)

    def next_at(self, repository: str) -> datetime | None:
        job = self._scheduler.get_job(repository)
        at = getattr(job, "next_run_time", None)
        return at.astimezone(UTC) if isinstance(at, datetime) else None

    def _trigger(self, interval: float, jitter: float) -> IntervalTrigger:
        return IntervalTrigger(seconds=interval, jitter=jitter or None, timezone=UTC)

    async def _run(self, repository: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running[repository] = task
        try:
            cause: str | None = self._cause.pop(repository, "schedule")
            while cause is not None:
                await self._round_of(repository, cause)
                cause = self._again.pop(repository, None)
        except asyncio.CancelledError:
            if not self._stopping:  # else APScheduler would log each round that we end as a failure
                raise
        finally:
            self._running.pop(repository, None)
