"""The controller: puts rounds, schedule, builds and catalogue together, and is what the HTTP API and tests speak to.

Whatever kills it, a new one on the same ledger, logs and image store goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog

from prebinder import __version__
from prebinder.builders.base import Builder, BuildOrder
from prebinder.builders.logs import LogStore
from prebinder.config import Configuration, LiveConfiguration
from prebinder.hosts.base import Host
from prebinder.ledger import BuildEntry, Ledger, RepositoryMemory, Wish
from prebinder.model.catalogue import BuildSummary, Catalogue, RepositoryEntry
from prebinder.model.events import BuildEvent, BuildRecord, BuildState
from prebinder.model.failure import HostUnavailable, PrebinderError, RegistryError
from prebinder.model.images import ImageName, image_name
from prebinder.model.messages import (
    BuildReply,
    BuildRequest,
    ControllerStatus,
    Health,
    HostStatus,
    LaunchRecord,
    PrepullStatus,
)
from prebinder.model.spec import Provider, Spec, parse_spec
from prebinder.reconcile.attempt import end_of
from prebinder.reconcile.builds import Builds, Wanted
from prebinder.reconcile.errors import BuildNotFound
from prebinder.reconcile.health import HealthChecks
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.plan import recipe
from prebinder.reconcile.publish import RECENT_BUILDS, Publisher, build_summary, repository_entry
from prebinder.reconcile.requests import answers, check_build, check_repository
from prebinder.reconcile.rounds import Rounds
from prebinder.reconcile.schedule import Schedule
from prebinder.reconcile.statuses import Statuses
from prebinder.reconcile.views import RepositoryView
from prebinder.reconcile.webhooks import Webhooks
from prebinder.registry.base import ImageStore

log = structlog.get_logger(__name__)

_DELIVERIES_KEPT = timedelta(days=7)
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Controller:
    """Start it once; stop it once. All methods belong to the event loop that started it."""

    def __init__(
        self,
        configuration: LiveConfiguration,
        ledger: Ledger,
        hosts: Mapping[Provider, Host],
        builder: Builder,
        images: ImageStore,
        logs: LogStore,
        *,
        clock: Callable[[], datetime] = _utc_now,
        randomness: random.Random | None = None,
    ) -> None:
        self._live = configuration
        self._ledger = ledger
        self._hosts = hosts
        self._builder = builder
        self._images = images
        self._logs = logs
        self._clock = clock
        self._views: dict[str, RepositoryView] = {}
        self._entries: dict[str, RepositoryEntry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefix = configuration.current.registry.image_prefix
        self._started_at = clock()
        self.prepull_status: Callable[[], PrepullStatus] | None = None
        """What pulls images ahead says of itself, for the status."""
        self.metrics = Metrics()
        self._builds = Builds(
            configuration=configuration,
            ledger=ledger,
            builder=builder,
            images=images,
            logs=logs,
            metrics=self.metrics,
            clock=clock,
            randomness=randomness or random.SystemRandom(),
            order_of=self._order,
            changed=self._build_changed,
            finished=self._build_finished,
        )
        self._schedule = Schedule(self._round)
        self._rounds = Rounds(
            configuration=configuration,
            ledger=ledger,
            hosts=hosts,
            images=images,
            builds=self._builds,
            metrics=self.metrics,
            clock=clock,
            changed=self._view_changed,
            later=self._schedule.later,
        )
        self._webhooks = Webhooks(
            configuration=configuration,
            ledger=ledger,
            hosts=hosts,
            views=self._views,
            builds=self._builds,
            metrics=self.metrics,
            clock=clock,
            ready=self._ready,
            moved=self._moved,
            spawn=self._spawn,
        )
        self._statuses = Statuses(configuration, self._rounds, self._spawn)
        self._publisher = Publisher(clock, self._compose)
        self._health = HealthChecks(
            {"ledger": ledger.health, "builder": builder.health, "registry": images.health}, self._views.values
        )

    async def start(self) -> None:
        """Go on where an earlier controller stopped, and look at every repository. Raises LedgerError."""
        memories = await self._ledger.repositories()
        for config in self._live.current.repositories:
            key = str(config.repository)
            self._views[key] = RepositoryView.of(config, memories.get(key))
        await self._ledger.forget_deliveries(self._clock() - _DELIVERIES_KEPT)
        try:
            await self._builder.adopt()
        except PrebinderError as error:
            log.error("controller.adopt", problem=str(error))
        await self._builds.recover()
        self._publisher.changed()
        self._builds.open()
        self._schedule.start()
        self._follow()

    async def stop(self) -> None:
        """Running builds are cancelled and go on with the next controller; streams end."""
        await self._schedule.stop()
        for task in (*self._tasks,):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._builds.stop()
        for view in self._views.values():
            try:
                await view.save(self._ledger)
            except PrebinderError as error:
                log.error("controller.stop", problem=str(error))
                break
        self._publisher.close()

    def configuration_changed(self) -> None:
        """Another configuration is in force, or the file on disk has become invalid or valid."""
        self._entries.clear()
        self._publisher.changed()
        self._spawn(self._apply())

    # What people and Git hosts ask

    async def request_build(self, request: BuildRequest) -> BuildReply:
        """The image of what a link names, or the build that makes it, joined or started.

        Raises SpecError, RefusedError, HostError (not found, unavailable), RegistryError or QueueFull.
        """
        configuration = self._live.current
        spec = parse_spec(request.provider, request.spec)
        registered = check_repository(configuration, spec.repository)
        repository = registered.repository if registered else spec.repository
        view = self._views.get(str(repository))
        revision = await self._resolve(Spec(repository, spec.ref), view)
        image = image_name(configuration.registry.image_prefix, repository, revision)
        active = self._active(image)
        known = view.revisions.get(revision) if view else None
        ready = await self._ready(image, view, revision) if not active or (known and known.image) else None
        if ready is not None:
            return BuildReply(revision=revision, launchable=ready)
        settings = recipe(configuration, registered)
        if not self._active(image):
            last = self._builds.latest(image)
            if last is not None and answers(last, rebuild=request.rebuild, settings=settings):
                return BuildReply(revision=revision, build=last.record)
            check_build(configuration, repository, spec.ref)
        wanted = Wanted(repository, spec.ref, revision, image, Wish.PERSON, request.priority, settings)
        entry = await self._builds.submit(wanted)
        if view is not None:
            view.see([revision], self._clock())
            self._view_changed(view.key)
        return BuildReply(revision=revision, build=entry.record)

    async def webhook(self, provider: str, headers: Mapping[str, str], body: bytes) -> int:
        """See `Webhooks.take`."""
        return await self._webhooks.take(provider, headers, body)

    async def cancel(self, beginning: str) -> BuildRecord:
        """Cancel a build. Raises BuildNotFound or BuildEnded."""
        record = await self.build(beginning)
        await self._builds.cancel(record.id)
        return record

    async def record_launches(self, launches: Sequence[LaunchRecord]) -> None:
        """Keep what the endpoint launched."""
        await self._ledger.record_launches(launches)
        for launch in launches:
            self.metrics.launches.labels("success" if launch.ok else launch.failure or "failure").inc()

    # What there is

    def catalogue(self) -> Catalogue:
        return self._publisher.current()

    def catalogue_changes(self) -> AsyncIterator[Catalogue]:
        """The catalogue now, and each later one; ends when the controller stops."""
        return self._publisher.changes()

    async def build(self, beginning: str) -> BuildRecord:
        """A build by its id or a unique beginning of it. Raises BuildNotFound."""
        record = await self._ledger.build(beginning) if beginning.isalnum() and len(beginning) <= 32 else None
        if record is None:
            raise BuildNotFound(f"There is no build {beginning[:40]!r}, or there are several that begin so.")
        return next((e.record for e in self._builds.active() if e.record.id == record.id), record)

    async def clicked_since(self, at: datetime) -> dict[tuple[str, str], datetime]:
        """Repository and ref of the links that were clicked since then, and when last."""
        return await self._ledger.clicked_since(at)

    async def builds(
        self, repository: str | None = None, state: BuildState | None = None, limit: int = 50
    ) -> list[BuildRecord]:
        """The newest builds, newest first."""
        return await self._ledger.builds(repository, state, limit)

    async def events(self, beginning: str, after: int = 0) -> AsyncIterator[BuildEvent]:
        """Follow a build's events. Raises BuildNotFound at once, not when iterated."""
        record = await self.build(beginning)
        return self._logs.follow(record.id, after, partial(self._end_of, record) if record.state.finished else None)

    async def log(self, beginning: str) -> list[BuildEvent]:
        """The events that are stored now. Raises BuildNotFound."""
        record = await self.build(beginning)
        return await self._logs.read(record.id)

    async def status(self) -> ControllerStatus:
        return ControllerStatus(
            version=__version__,
            started_at=self._started_at,
            configuration=str(self._live.path) if self._live.path else None,
            configuration_problem=self._live.problem,
            queued=self._builds.queued(),
            running=self._builds.running(),
            repositories=tuple(
                HostStatus(
                    repository=view.key,
                    looked_at=view.memory.looked_at,
                    next_look_at=self._schedule.next_at(view.key),
                    problem=view.memory.problem,
                )
                for view in self._views.values()
            ),
            health=await self.health(),
            prepull=self.prepull_status() if self.prepull_status else None,
        )

    async def health(self) -> Health:
        return await self._health.now()

    # Rounds and the configuration

    async def _round(self, repository: str, cause: str) -> None:
        if view := self._views.get(repository):
            await self._rounds.run(view, cause)

    def _moved(self, repository: str) -> None:
        """A webhook moved a ref: the catalogue says so, and a round looks at everything."""
        self._view_changed(repository)
        self._schedule.now(repository, "webhook")

    async def _apply(self) -> None:
        """Take over the configuration in force: repositories, intervals, image names, parallel builds."""
        configuration = self._live.current
        wanted = {str(config.repository): config for config in configuration.repositories}
        memories = await self._memories(configuration) if set(wanted) - set(self._views) else {}
        if configuration is not self._live.current:
            return  # changed again meanwhile: that change is applied in its turn
        gone = {key: self._views.pop(key) for key in set(self._views) - set(wanted)}
        for key, config in wanted.items():
            if key in self._views:
                self._views[key].config = config
            else:
                self._views[key] = RepositoryView.of(config, memories.get(key))
        if configuration.registry.image_prefix != self._prefix:
            self._prefix = configuration.registry.image_prefix
            for view in self._views.values():
                for revision in view.revisions:
                    view.set_image(revision, None, self._clock())
        self._entries.clear()
        self._publisher.changed()
        self._builds.dispatch()
        self._follow()
        for key in self._views:
            self._schedule.now(key, "configuration")
        for key, view in gone.items():
            try:
                await view.save(self._ledger)
            except PrebinderError as error:
                log.error("configuration.apply", repository=key, problem=str(error))
            for entry in self._builds.active():
                if entry.record.repository == key and entry.wish is not Wish.PERSON:
                    with contextlib.suppress(PrebinderError):  # it has ended, or its end cannot be written down
                        await self._builds.cancel(entry.record.id, superseded=True)

    async def _memories(self, configuration: Configuration) -> dict[str, RepositoryMemory]:
        """What the ledger remembers; asked for until it answers or another configuration is in force."""
        pause = _FIRST_PAUSE
        while configuration is self._live.current:
            try:
                return await self._ledger.repositories()
            except PrebinderError as error:
                log.error("configuration.apply", problem=str(error), again_after=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return {}

    def _follow(self) -> None:
        polling = self._live.current.polling
        self._schedule.follow(self._views, polling.interval, polling.jitter)

    # Requests

    async def _resolve(self, spec: Spec, view: RepositoryView | None) -> str:
        """The host's word; when it is away, the last revision that it told us."""
        host = self._rounds.host(spec.repository)
        try:
            return await self._rounds.ask(spec.repository, "resolve", host.resolve(spec))
        except HostUnavailable:
            entry = self._entry(view) if view else None
            if entry is None or (known := entry.revision_of(spec.ref)) is None:
                raise
            return known

    async def _ready(self, image: ImageName, view: RepositoryView | None, revision: str) -> str | None:
        """What the Hub starts, when the image exists; when the store is away, what it last said."""
        try:
            ready = await self._images.launchable(image)
        except RegistryError:
            memory = view.revisions.get(revision) if view else None
            if memory is None or memory.image is None:
                raise
            return memory.image
        known = view is not None and (ready is not None or revision in view.revisions)
        if view is not None and known and view.set_image(revision, ready, self._clock()):
            self._view_changed(view.key)
        return ready

    def _active(self, image: ImageName) -> bool:
        last = self._builds.latest(image)
        return last is not None and not last.record.state.finished

    # Builds

    def _order(self, record: BuildRecord) -> BuildOrder:
        configuration: Configuration = self._live.current
        provider, _, name = record.repository.partition("/")
        repository = parse_spec(provider, f"{name}/{record.revision}").repository
        registered = configuration.find(repository)
        limits = configuration.limits
        image, _, tag = record.image.rpartition(":")
        view = self._views.get(record.repository)
        named = {ref.name for ref in view.refs.values()} if view else set[str]()
        return BuildOrder(
            id=record.id,
            repository=repository,
            clone_url=self._rounds.host(repository).clone_url(repository),
            revision=record.revision,
            ref=record.ref,
            image=ImageName(image, tag),
            build_pack=(registered.build_pack if registered else None) or configuration.builder.build_pack,
            base_image=configuration.builder.base_image,
            push=self._images.pushes,
            time_limit=limits.time,
            memory_limit=limits.memory,
            log_limit=limits.log,
            disk_limit=limits.disk,
            trusted=record.ref == "HEAD" or record.ref in named,
        )

    async def _end_of(self, record: BuildRecord) -> BuildEvent:
        """How a finished build ended, from the ledger: its log stayed with another controller, or was lost."""
        image, failure = None, record.as_failure()
        if record.state is BuildState.READY:
            name, _, tag = record.image.rpartition(":")
            try:
                image = await self._ready(ImageName(name, tag), self._views.get(record.repository), record.revision)
            except PrebinderError as error:
                failure = error.failure()
        return end_of(record, image, failure)

    def _build_changed(self, entry: BuildEntry) -> None:
        self._view_changed(entry.record.repository)
        self._statuses.tell(entry.record)

    async def _build_finished(self, entry: BuildEntry, image: str | None) -> None:
        if (view := self._views.get(entry.record.repository)) and image is not None:
            view.set_image(entry.record.revision, image, self._clock())
            await view.save(self._ledger)

    # The catalogue

    def _view_changed(self, repository: str) -> None:
        self._entries.pop(repository, None)
        self._publisher.changed()

    def _entry(self, view: RepositoryView) -> RepositoryEntry:
        if (entry := self._entries.get(view.key)) is None:
            host = self._hosts.get(view.repository.provider)
            entry = self._entries[view.key] = repository_entry(
                view,
                lambda revision: self._rounds.latest(view, revision),
                url=host.web_url(view.repository) if host else "",
                now=self._clock(),
                interval=self._live.current.polling.interval,
            )
        return entry

    def _compose(
        self,
    ) -> tuple[Configuration, str | None, tuple[RepositoryEntry, ...], tuple[BuildSummary, ...]]:
        entries = tuple(self._entry(view) for view in self._views.values())
        recent = tuple(build_summary(record) for record in self._builds.recent(RECENT_BUILDS))
        return self._live.current, self._live.problem, entries, recent

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that nobody waits for; its problems are logged, its end is waited for when we stop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("controller.task", problem=str(error), exc_info=error)
