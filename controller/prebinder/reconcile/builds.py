"""The builds that wait and run: one an image however many ask, bounded in parallel, retried by kind of failure.

Guarantees:
- A state is in the ledger before it is acted on, so that whatever kills the process, the next one goes on.
- A build has exactly one terminal event, and only when no further attempt comes.
- Nothing here polls: a build starts when it is submitted, when another ends, or when its pause is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

import structlog

from prebinder.builders.base import Builder, BuildOrder
from prebinder.builders.logs import LogStore
from prebinder.config import LiveConfiguration
from prebinder.ledger import BuildEntry, Ledger, Wish
from prebinder.model.events import BuildRecord, BuildState, Phase, Priority
from prebinder.model.failure import Disposition, Failure, FailureKind, PrebinderError
from prebinder.model.images import ImageName
from prebinder.model.spec import Repository
from prebinder.reconcile.attempt import Journal, attempt, said_so_far
from prebinder.reconcile.errors import BuildEnded, QueueFull
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.queue import BuildQueue, Waiting
from prebinder.registry.base import ImageStore

log = structlog.get_logger(__name__)

_STOP_SECONDS = 30.0


class _Ending(Enum):
    """Why we end a running attempt ourselves."""

    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    repository: Repository
    ref: str
    revision: str
    image: ImageName
    wish: Wish
    priority: Priority
    recipe: str


OrderOf = Callable[[BuildRecord], BuildOrder]
"""Everything that the builder needs, from the configuration in force now. Raises PrebinderError."""
Changed = Callable[[BuildEntry], None]
Finished = Callable[[BuildEntry, str | None], Awaitable[None]]


class Builds:
    """All builds. `changed` is told of each new state, `finished` of each end before it is published."""

    def __init__(
        self,
        *,
        configuration: LiveConfiguration,
        ledger: Ledger,
        builder: Builder,
        images: ImageStore,
        logs: LogStore,
        metrics: Metrics,
        clock: Callable[[], datetime],
        randomness: random.Random,
        order_of: OrderOf,
        changed: Changed,
        finished: Finished,
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._builder = builder
        self._images = images
        self._logs = logs
        self._metrics = metrics
        self._clock = clock
        self._random = randomness
        self._order_of = order_of
        self._changed = changed
        self._finished = finished
        self._queue = BuildQueue()
        self._active: dict[str, BuildEntry] = {}
        self._latest: dict[str, BuildEntry] = {}
        self._journals: dict[str, Journal] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._attempts: dict[str, asyncio.Task[tuple[str, str]]] = {}
        self._endings: dict[str, _Ending] = {}
        self._resumed: dict[str, int] = {}
        self._finishing: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        metrics.watch(lambda: len(self._queue), lambda: len(self._tasks))

    # What there is

    def latest(self, image: ImageName | str) -> BuildEntry | None:
        """The newest build of an image."""
        return self._latest.get(str(image))

    def active(self) -> tuple[BuildEntry, ...]:
        return tuple(self._active.values())

    def queued(self) -> tuple[BuildRecord, ...]:
        """In the order in which they would run now, those that pause last."""
        order = {build_id: place for place, build_id in enumerate(self._queue.order(self._clock()))}
        waiting = [e.record for e in self._active.values() if e.record.state is BuildState.QUEUED]
        return tuple(sorted(waiting, key=lambda r: (order.get(r.id, len(order)), r.queued_at)))

    def running(self) -> tuple[BuildRecord, ...]:
        return tuple(e.record for e in self._active.values() if e.record.state is BuildState.RUNNING)

    def recent(self, count: int) -> list[BuildRecord]:
        """The newest ones, newest first."""
        return heapq.nlargest(count, (e.record for e in self._latest.values()), key=_moment)

    # Start and stop

    async def recover(self) -> None:
        """Take up what an earlier controller left: queued builds go on; running ones too where the builder keeps them
        running, else they are tried again at once."""
        self._latest = await self._ledger.latest_builds()
        for entry in await self._ledger.unfinished():
            await self._recover(entry)

    def open(self) -> None:
        """From now on builds start."""
        self._open = True
        for build_id in self._resumed:
            self._begin(build_id)
        self.dispatch()

    async def stop(self) -> None:
        """End running builds, or let go of them where the builder keeps them running; they go on with the next
        controller."""
        self._open = False
        self._builder.detach()
        if self._timer is not None:
            self._timer.cancel()
        tasks = dict(self._tasks)
        for build_id in tasks:
            self._interrupt(build_id, _Ending.STOPPING)
        if tasks:
            _, late = await asyncio.wait(tasks.values(), timeout=_STOP_SECONDS)
            if late:
                log.error("builds.stop", problem="the builder did not end all builds in time", builds=len(late))

    # What is asked for

    async def submit(self, wanted: Wanted) -> BuildEntry:
        """Queue a build, or join the one of the same image that waits or runs. Raises QueueFull."""
        image = str(wanted.image)
        have = self._latest.get(image)
        if have is not None and not have.record.state.finished:
            return await self._join(have, wanted)
        if len(self._queue) >= self._configuration.current.limits.queue:
            raise QueueFull(
                f"{len(self._queue)} builds wait already (limits.queue). Try again in a minute, "
                "or open a revision that is ready."
            )
        record = BuildRecord(
            id=f"{self._random.getrandbits(48):012x}",
            repository=str(wanted.repository),
            ref=wanted.ref,
            revision=wanted.revision,
            image=image,
            state=BuildState.QUEUED,
            priority=wanted.priority,
            attempt=1,
            queued_at=self._clock(),
        )
        entry = BuildEntry(record, wanted.wish, wanted.recipe)
        # In memory first, without a pause in between, so that whoever asks meanwhile joins.
        self._keep(entry)
        journal = self._journals[record.id] = Journal(record.id, self._logs, self._clock, None)
        try:
            await self._ledger.put_build(entry)
            await journal.say(Phase.WAITING, f"Waiting to build {wanted.revision[:12]}.")
            current = self._active[record.id]
            await self._requeue(current)
        except BaseException as error:
            lost = self._lose(record.id, error) if isinstance(error, Exception) else None
            self._drop(entry, have)
            if lost is not None:
                with contextlib.suppress(PrebinderError):  # it may stand in the ledger as queued
                    await self._ledger.put_build(lost)
            raise
        self.dispatch()
        return self._latest.get(image, current)

    async def cancel(self, build_id: str, *, superseded: bool = False) -> None:
        """End a build for good. Raises BuildEnded when it has ended already."""
        entry = self._active.get(build_id)
        if entry is None:
            raise BuildEnded("The build has ended already; there is nothing to cancel.")
        ending = _Ending.SUPERSEDED if superseded else _Ending.CANCELLED
        if build_id in self._finishing:
            raise BuildEnded("The build is ending already; there is nothing to cancel.")
        if not self._queue.remove(build_id):
            self._interrupt(build_id, ending)  # it runs, or is just being queued
            return
        try:
            await self._end(entry, _failure_of(ending), superseded=superseded)
        except Exception as error:
            self._lose(build_id, error)
            raise
        finally:
            self.dispatch()

    def dispatch(self) -> None:
        """Start what may start now; come back when the next pause ends."""
        if not self._open or self._configuration.current.builder.suspend:
            return
        now = self._clock()
        while len(self._tasks) < self._configuration.current.limits.parallel:
            build_id = self._queue.take(now, self._full())
            if build_id is None:
                break
            self._begin(build_id)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self._queue.next_at(now)) is not None:
            delay = max((at - now).total_seconds(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self.dispatch)

    # How

    def _begin(self, build_id: str) -> None:
        task = asyncio.create_task(self._run(self._active[build_id]), name=f"build {build_id}")
        self._tasks[build_id] = task
        task.add_done_callback(lambda done: self._done(build_id, done))

    def _full(self) -> set[str]:
        """The repositories of which as many builds run as may."""
        most = self._configuration.current.limits.parallel_per_repository
        if not most:
            return set()
        running = Counter(e.record.repository for b in self._tasks if (e := self._active.get(b)) is not None)
        return {repository for repository, builds in running.items() if builds >= most}

    async def _recover(self, entry: BuildEntry) -> None:
        record = entry.record
        last = await self._logs.recover(record.id)
        journal = self._journals[record.id] = Journal(record.id, self._logs, self._clock, last)
        self._keep(entry)
        if ended := journal.ended:
            # The end was told but not yet written: take it from there, if the image really is there.
            image = await self._launchable(record) if ended.image else None
            if image is not None:
                await self._succeed(entry, image, ended.message)
            else:
                kind = ended.failure or FailureKind.REGISTRY
                await self._end(entry, Failure(kind, ended.message.strip()))
            return
        if record.state is BuildState.RUNNING and self._builder.keeps_running:
            self._resumed[record.id] = said_so_far(await self._logs.read(record.id))
            return
        if record.state is BuildState.RUNNING:
            interrupted = Failure(FailureKind.INTERRUPTED, "The controller stopped in mid-build.")
            await self._fail(entry, interrupted, pause=False)
            return
        self._queue.add(_waiting(record))

    async def _launchable(self, record: BuildRecord) -> str | None:
        try:
            return await self._images.launchable(_image_name(record.image))
        except PrebinderError:
            return None

    async def _join(self, entry: BuildEntry, wanted: Wanted) -> BuildEntry:
        if entry.record.id in self._finishing:
            return entry
        better = wanted.priority.rank < entry.record.priority.rank
        wish = Wish.PERSON if wanted.wish is Wish.PERSON else entry.wish
        if not better and wish is entry.wish:
            return entry
        priority = wanted.priority if better else entry.record.priority
        pause = None if priority is Priority.PERSON else entry.record.next_attempt_at
        joined = replace(
            entry,
            record=entry.record.model_copy(update={"priority": priority, "next_attempt_at": pause}),
            wish=wish,
        )
        self._keep(joined)
        self._queue.raise_priority(entry.record.id, priority)
        self.dispatch()
        # It may have started meanwhile: write what it is now.
        current = self._active.get(entry.record.id, joined)
        await self._ledger.put_build(current)
        return current

    async def _run(self, entry: BuildEntry) -> None:
        build_id, now = entry.record.id, self._clock()
        if build_id not in self._resumed:
            started = {"state": BuildState.RUNNING, "started_at": now, "next_attempt_at": None}
            entry = await self._put(entry, started)
        began = entry.record.started_at or now
        result = await self._attempt(entry)
        entry, ending = self._active[build_id], self._endings.pop(build_id, None)
        if isinstance(result, tuple):
            self._measure(began, "success")
            image, words = result
            await self._succeed(entry, image, words)
        elif ending is not None:
            await self._cut_short(entry, ending)
        elif result is not None:
            self._measure(began, "failure")
            await self._fail(entry, result)

    async def _attempt(self, entry: BuildEntry) -> tuple[str, str] | Failure | None:
        """One attempt in a task of its own, so that cancelling it never cuts off what is written about it."""
        build_id = entry.record.id
        if build_id in self._endings:
            return None
        try:
            said_before = self._resumed.pop(build_id, None)
            number = entry.record.attempt
            # One that has said nothing may never have got as far as the builder: begun anew, it meets what is there.
            order = replace(self._order_of(entry.record), attempt=number, resumed=bool(said_before))
            work = attempt(
                order,
                self._builder,
                self._images,
                self._journals[build_id],
                look_first=number > 1 and said_before is None,
                said_before=said_before or 0,
            )
            task = self._attempts[build_id] = asyncio.create_task(work, name=f"attempt at build {build_id}")
            try:
                await asyncio.wait([task])
            finally:
                task.cancel()
                self._attempts.pop(build_id, None)
            return None if task.cancelled() else task.result()
        except PrebinderError as error:
            return error.failure()
        except Exception:
            log.exception("build.defect", build=build_id)
            return Failure(FailureKind.INTERNAL, f"{FailureKind.INTERNAL.heading}. {FailureKind.INTERNAL.advice}")

    def _interrupt(self, build_id: str, ending: _Ending) -> None:
        self._endings.setdefault(build_id, ending)
        if task := self._attempts.get(build_id):
            task.cancel()

    def _done(self, build_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(build_id) is task:  # else its next attempt has begun already
            del self._tasks[build_id]
            self._endings.pop(build_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._lose(build_id, error)
        self.dispatch()

    def _lose(self, build_id: str, error: BaseException) -> BuildEntry | None:
        """The ledger or the log failed under a build: it ends in memory, as returned, and its followers are told.

        The next start takes it up from the ledger."""
        log.error("build.lost", build=build_id, problem=str(error))
        if (entry := self._active.get(build_id)) is None:
            return None
        now, message = self._clock(), "The controller could not write down what happened: is its disk full?"
        lost: dict[str, object] = {
            "state": BuildState.FAILED,
            "finished_at": now,
            "failure": FailureKind.INTERNAL,
            "message": message,
        }
        self._queue.remove(build_id)
        ended = replace(entry, record=entry.record.model_copy(update=lost))
        self._drop(entry, ended)
        self._logs.lose(build_id, now, FailureKind.INTERNAL, message)
        return ended

    async def _fail(self, entry: BuildEntry, failure: Failure, *, pause: bool = True) -> None:
        """An attempt failed: queue the next one, or end."""
        record, limits = entry.record, self._configuration.current.limits
        self._metrics.attempts.labels(failure.kind).inc()
        if failure.kind.disposition is not Disposition.RETRY or record.attempt >= limits.attempts:
            await self._end(entry, failure)
            return
        seconds = min(limits.backoff * 2 ** (record.attempt - 1), limits.backoff_max) if pause else 0.0
        again = f"in {seconds:g} s" if seconds else "now"
        await self._journals[record.id].say(
            Phase.WAITING,
            f"{failure.kind.heading}: {failure.message.strip()}\n"
            f"Attempt {record.attempt + 1} of {limits.attempts} comes {again}.",
        )
        entry = await self._put(
            entry,
            {
                "state": BuildState.QUEUED,
                "attempt": record.attempt + 1,
                "next_attempt_at": self._clock() + timedelta(seconds=seconds) if seconds else None,
                "failure": failure.kind,
                "message": failure.message,
            },
        )
        await self._requeue(entry)

    async def _cut_short(self, entry: BuildEntry, ending: _Ending) -> None:
        if ending is not _Ending.STOPPING:
            await self._end(entry, _failure_of(ending), superseded=ending is _Ending.SUPERSEDED)
            return
        if self._builder.keeps_running:
            return  # it is in the ledger as running: the next controller goes on with it
        await self._journals[entry.record.id].say(
            Phase.WAITING, "The controller is stopping. The build starts anew when it is back."
        )
        await self._put(entry, {"state": BuildState.QUEUED, "started_at": None})

    async def _succeed(self, entry: BuildEntry, image: str, words: str) -> None:
        self._finishing.add(entry.record.id)
        await self._journals[entry.record.id].say(Phase.BUILT, words, image=image)
        await self._finish(entry, {"state": BuildState.READY, "failure": None, "message": None}, image)

    async def _end(self, entry: BuildEntry, failure: Failure, *, superseded: bool = False) -> None:
        self._finishing.add(entry.record.id)
        await self._journals[entry.record.id].say(Phase.FAILED, failure.message, failure=failure.kind)
        state = BuildState.CANCELLED if failure.kind is FailureKind.CANCELLED else BuildState.FAILED
        entry = replace(entry, superseded=superseded)
        await self._finish(entry, {"state": state, "failure": failure.kind, "message": failure.message}, None)

    async def _finish(self, entry: BuildEntry, change: dict[str, object], image: str | None) -> None:
        ended = {"finished_at": self._clock(), "next_attempt_at": None, **change}
        entry = replace(entry, record=entry.record.model_copy(update=ended))
        await self._finished(entry, image)
        await self._ledger.put_build(entry)
        self._drop(entry, entry)
        self._metrics.builds.labels(entry.record.state, entry.record.failure or "").inc()
        log.info(
            "build.ended",
            build=entry.record.id,
            repository=entry.record.repository,
            revision=entry.record.revision,
            state=entry.record.state.value,
            failure=entry.record.failure.value if entry.record.failure else None,
        )

    async def _put(self, entry: BuildEntry, change: dict[str, object]) -> BuildEntry:
        """Change the newest version of an unfinished build, in memory and in the ledger."""
        entry = self._active.get(entry.record.id, entry)
        entry = replace(entry, record=entry.record.model_copy(update=change))
        self._keep(entry)
        await self._ledger.put_build(entry)
        return self._active.get(entry.record.id, entry)

    async def _requeue(self, entry: BuildEntry) -> None:
        """Queue it, unless it was cancelled while that was written down."""
        if ending := self._endings.pop(entry.record.id, None):
            await self._cut_short(entry, ending)
        else:
            self._queue.add(_waiting(entry.record))

    def _keep(self, entry: BuildEntry) -> None:
        self._active[entry.record.id] = entry
        self._latest[entry.record.image] = entry
        self._changed(entry)

    def _drop(self, entry: BuildEntry, before: BuildEntry | None) -> None:
        self._active.pop(entry.record.id, None)
        self._journals.pop(entry.record.id, None)
        self._finishing.discard(entry.record.id)
        if before is None:
            self._latest.pop(entry.record.image, None)
        else:
            self._latest[entry.record.image] = before
        self._changed(entry)

    def _measure(self, started: datetime, status: str) -> None:
        self._metrics.build_seconds.labels(status).observe((self._clock() - started).total_seconds())


def _waiting(record: BuildRecord) -> Waiting:
    return Waiting(record.id, record.repository, record.priority, record.next_attempt_at)


def _failure_of(ending: _Ending) -> Failure:
    if ending is _Ending.SUPERSEDED:
        return Failure(FailureKind.CANCELLED, "A newer revision took the place of this build.")
    return Failure(FailureKind.CANCELLED, "The build was cancelled. Click again to build it.")


def _image_name(reference: str) -> ImageName:
    name, _, tag = reference.rpartition(":")
    return ImageName(name, tag)


def _moment(record: BuildRecord) -> datetime:
    return record.finished_at or record.started_at or record.queued_at
