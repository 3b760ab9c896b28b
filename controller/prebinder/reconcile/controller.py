"""The controller: rounds on a schedule, webhooks and requests in, the catalogue out.

Guarantees:
- Rounds of one repository never overlap; rounds of many run side by side, a bounded number at a time.
- A webhook and a person never wait for a schedule.
- The catalogue is published within a tenth of a second of a change, and never more often.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from prebinder import __version__
from prebinder.builders.base import Builder, BuildOrder
from prebinder.builders.logs import LogStore
from prebinder.config import LiveConfiguration, RepositoryConfig
from prebinder.hosts.base import CommitState, Host
from prebinder.ledger import BuildEntry, Ledger, RepositoryMemory, Wish
from prebinder.model.catalogue import Catalogue
from prebinder.model.events import BuildEvent, BuildRecord, BuildState
from prebinder.model.failure import FailureKind, HostError, HostUnavailable, PrebinderError, RefusedError
from prebinder.model.images import ImageName, image_name
from prebinder.model.messages import (
    BuildReply,
    BuildRequest,
    ControllerStatus,
    Health,
    HealthCheck,
    HostStatus,
    LaunchRecord,
)
from prebinder.model.spec import Provider, Repository, Spec, parse_spec
from prebinder.reconcile.builds import Builds, Wanted
from prebinder.reconcile.errors import BuildNotFound, HookClosed
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.plan import recipe
from prebinder.reconcile.publish import catalogue as make_catalogue
from prebinder.reconcile.rounds import Rounds
from prebinder.registry.base import ImageStore

log = structlog.get_logger(__name__)

_DEBOUNCE = 0.1
_RECENT = 50
_PARALLEL_ROUNDS = 8
_DELIVERIES_KEPT = timedelta(days=3)


class Controller:
    """See the module. `start` it, `stop` it; between the two it answers."""

    def __init__(
        self,
        configuration: LiveConfiguration,
        *,
        ledger: Ledger,
        hosts: Mapping[Provider, Host],
        builder: Builder,
        images: ImageStore,
        logs: LogStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        randomness: random.Random | None = None,
    ) -> None:
        self.configuration = configuration
        self.logs = logs
        self.metrics = Metrics()
        self._ledger = ledger
        self._hosts = hosts
        self._builder = builder
        self._images = images
        self._clock = clock
        self._builds = Builds(
            configuration=configuration,
            ledger=ledger,
            builder=builder,
            images=images,
            logs=logs,
            metrics=self.metrics,
            clock=clock,
            randomness=randomness or random.SystemRandom(),
            order_of=self._order_of,
            changed=self._build_changed,
            finished=self._build_finished,
        )
        self._rounds = Rounds(
            configuration=configuration,
            ledger=ledger,
            hosts=hosts,
            images=images,
            builds=self._builds,
            metrics=self.metrics,
            clock=clock,
        )
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._places = asyncio.Semaphore(_PARALLEL_ROUNDS)
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._catalogue: Catalogue | None = None
        self._publishing: asyncio.TimerHandle | None = None
        self._started_at = clock()

    # Start and stop

    async def start(self) -> None:
        """Take up what an earlier controller left, then begin with rounds. Raises PrebinderError."""
        await self._rounds.load()
        await self._builder.adopt()
        await self._builds.recover()
        self._publish()
        self._builds.open()
        self._scheduler.start()
        self._scheduler.add_job(self._forget, IntervalTrigger(hours=6), id="forget", max_instances=1)
        self._schedule()

    async def stop(self) -> None:
        """End rounds and running builds; the next controller goes on with them."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._builds.stop()
        if self._publishing is not None:
            self._publishing.cancel()

    def configuration_changed(self) -> None:
        """The configuration in force is another, or its file became invalid."""
        self._schedule()
        self._builds.dispatch()
        self._soon()

    # What is asked

    async def request_build(self, request: BuildRequest) -> BuildReply:
        """Resolve what a link names and build it, or say which image or build is there already.

        Raises SpecError, RefusedError, HostError, RegistryError or QueueFull.
        """
        spec = parse_spec(request.provider, request.spec)
        current = self.configuration.current
        config = current.find(spec.repository)
        repository = config.repository if config else spec.repository
        spec = Spec(repository, spec.ref)
        self._check_allowed(config)
        if repository.provider not in self._hosts:
            raise RefusedError(f"Repositories of the provider {repository.provider.value} are not served here.")
        revision = await self._hosts[repository.provider].resolve(spec)
        name = image_name(current.registry.image_prefix, repository, revision)
        if launchable := await self._images.launchable(name):
            await self._rounds.built(str(repository), revision, launchable)
            self._soon()
            return BuildReply(revision=revision, launchable=launchable)
        latest = self._builds.latest(name)
        settings = recipe(current, config)
        if latest is not None and not request.rebuild and _stays_failed(latest, settings):
            return BuildReply(revision=revision, build=latest.record)
        wanted = Wanted(repository, spec.ref, revision, name, Wish.PERSON, request.priority, settings)
        return BuildReply(revision=revision, build=(await self._builds.submit(wanted)).record)

    async def webhook(self, provider: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take a Git host's webhook; how many refs it told of. Raises HookClosed or WebhookRejected."""
        host = next((h for p, h in self._hosts.items() if provider in (p.value, p.name.lower())), None)
        if host is None:
            raise HookClosed(f"There is no webhook for {provider[:40]!r}.")
        changes = host.verify_webhook(headers, body)
        count = 0
        for change in changes:
            config = self.configuration.current.find(change.repository)
            if config is None:
                continue
            key = f"{change.delivery}/{change.ref}" if change.delivery else None
            if key and not await self._ledger.first_delivery(provider, key, self._clock()):
                continue
            count += 1
            self._begin(self._hear(config, change.ref, change.revision))
        return count

    async def cancel(self, build_id: str) -> None:
        """Raises BuildNotFound or BuildEnded."""
        record = await self.build(build_id)
        await self._builds.cancel(record.id)

    async def build(self, build_id: str) -> BuildRecord:
        """By its id or a unique beginning of it. Raises BuildNotFound."""
        record = await self._ledger.build(build_id)
        if record is None:
            raise BuildNotFound(f"There is no build {build_id[:64]!r}, or several ids begin so.")
        return record

    async def builds(
        self, repository: str | None = None, state: BuildState | None = None, limit: int = 50
    ) -> list[BuildRecord]:
        """The newest builds, newest first."""
        return await self._ledger.builds(repository, state, limit)

    def follow(self, build_id: str, after: int = 0) -> AsyncIterator[BuildEvent]:
        """The events of a build from the first (or after `after`) to the terminal one."""
        return self.logs.follow(build_id, after)

    async def record_launches(self, records: list[LaunchRecord]) -> None:
        """Write down what endpoints launched."""
        for record in records:
            self.metrics.launches.labels("success" if record.ok else "failure").inc()
        await self._ledger.record_launches(records)

    def catalogue(self) -> Catalogue:
        """What is published now."""
        assert self._catalogue is not None, "the controller has not been started"
        return self._catalogue

    async def catalogue_changes(self) -> AsyncIterator[Catalogue]:
        """The catalogue now, and again after each change."""
        seen = None
        while True:
            now = self.catalogue()
            if now.version != seen:
                seen = now.version
                yield now
            async with self._news:
                while self.catalogue().version == seen:
                    await self._news.wait()

    async def status(self) -> ControllerStatus:
        """All that an operator asks first."""
        return ControllerStatus(
            version=__version__,
            started_at=self._started_at,
            configuration=str(self.configuration.path) if self.configuration.path else None,
            configuration_problem=self.configuration.problem,
            queued=self._builds.queued(),
            running=self._builds.running(),
            repositories=tuple(self._host_status(c) for c in self.configuration.current.repositories),
            health=await self.health(),
        )

    async def health(self) -> Health:
        """What builds need: ledger, builder, image store."""

        async def check(service: str, question: Callable[[], object]) -> HealthCheck:
            try:
                async with asyncio.timeout(20):
                    answer = question()
                    assert asyncio.iscoroutine(answer)
                    await answer
            except PrebinderError as error:
                return HealthCheck(service=service, ok=False, message=str(error))
            except TimeoutError:
                return HealthCheck(service=service, ok=False, message="No answer within 20 s.")
            return HealthCheck(service=service, ok=True)

        checks = await asyncio.gather(
            check("ledger", self._ledger.health),
            check("builder", self._builder.health),
            check("images", self._images.health),
        )
        return Health(ok=all(c.ok for c in checks), checks=tuple(checks))

    # The schedule

    def _schedule(self) -> None:
        """One job for each registered repository, and a round at once for each that is new or changed."""
        polling = self.configuration.current.polling
        trigger = {"seconds": polling.interval, "jitter": polling.jitter or None}
        wanted = {f"round {c.repository}": c for c in self.configuration.current.repositories}
        for job in self._scheduler.get_jobs():
            if job.id.startswith("round ") and job.id not in wanted:
                job.remove()
        for job_id, config in wanted.items():
            self._scheduler.add_job(
                self._round,
                IntervalTrigger(**trigger),
                args=[str(config.repository)],
                id=job_id,
                replace_existing=True,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
                next_run_time=self._clock(),
            )

    async def _round(self, repository: str, *, announced: bool = False) -> None:
        config = self._registered(repository)
        if config is None:
            return
        cause = "webhook" if announced else "schedule"
        async with self._lock(repository), self._places:
            try:
                await self._rounds.run(config, missed=not announced)
            except HostError as error:
                self.metrics.rounds.labels(cause, "failure").inc()
                log.warning("round.failed", repository=repository, problem=str(error))
                if isinstance(error, HostUnavailable) and error.retry_after:
                    self._not_before(repository, error.retry_after)
            except PrebinderError as error:
                self.metrics.rounds.labels(cause, "failure").inc()
                log.error("round.failed", repository=repository, problem=str(error))
            else:
                self.metrics.rounds.labels(cause, "success").inc()
            finally:
                self._soon()

    async def _hear(self, config: RepositoryConfig, ref: str, revision: str | None) -> None:
        repository = str(config.repository)
        self.metrics.webhooks.labels(config.repository.provider, "taken").inc()
        try:
            async with self._lock(repository):
                if revision is not None:
                    await self._rounds.announced(config, ref, revision)
        except PrebinderError as error:
            log.error("webhook.failed", repository=repository, problem=str(error))
        await self._round(repository, announced=True)

    def _not_before(self, repository: str, seconds: float) -> None:
        """The host named a pause: the next round of this repository waits for it."""
        job = self._scheduler.get_job(f"round {repository}")
        at = self._clock() + timedelta(seconds=seconds)
        if job is not None and job.next_run_time is not None and job.next_run_time < at:
            job.modify(next_run_time=at)

    async def _forget(self) -> None:
        await self._ledger.forget_deliveries(self._clock() - _DELIVERIES_KEPT)

    # What builds need and tell

    def _order_of(self, record: BuildRecord) -> BuildOrder:
        provider, _, rest = record.repository.partition("/")
        repository = parse_spec(provider, f"{rest}/{record.revision}").repository
        current = self.configuration.current
        config = current.find(repository)
        limits = current.limits
        name, _, tag = record.image.rpartition(":")
        return BuildOrder(
            id=record.id,
            repository=repository,
            clone_url=self._hosts[repository.provider].clone_url(repository),
            revision=record.revision,
            ref=record.ref,
            image=ImageName(name, tag),
            build_pack=(config.build_pack if config else None) or current.builder.build_pack,
            base_image=current.builder.base_image,
            push=self._images.pushes,
            time_limit=limits.time,
            memory_limit=limits.memory,
            log_limit=limits.log,
            disk_limit=limits.disk,
        )

    def _build_changed(self, entry: BuildEntry) -> None:
        self._soon()
        if not entry.record.state.finished:
            state = CommitState.PENDING if entry.record.state is BuildState.RUNNING else None
            if state is not None:
                self._report(entry.record, state)

    async def _build_finished(self, entry: BuildEntry, image: str | None) -> None:
        record = entry.record
        await self._rounds.built(record.repository, record.revision, image)
        if record.state is BuildState.READY:
            self._report(record, CommitState.SUCCESS)
        elif record.state is BuildState.FAILED:
            own = record.failure is FailureKind.REPOSITORY
            self._report(record, CommitState.FAILURE if own else CommitState.ERROR)

    def _report(self, record: BuildRecord, state: CommitState) -> None:
        """Tell the Git host, where that is configured; never in the way of a build."""
        repository = self._repository(record.repository)
        if repository.provider is not Provider.GITHUB or not self.configuration.current.hosts.github.report_status:
            return

        async def tell() -> None:
            site = self.configuration.current.site.url
            target = f"{site.rstrip('/')}/builds/{record.id}/log" if site else None
            words = record.failure.heading if record.failure else f"Image {state.value}"
            try:
                await self._hosts[repository.provider].report_status(repository, record.revision, state, words, target)
            except HostError as error:
                log.warning("status.not_reported", repository=record.repository, problem=str(error))

        self._begin(tell())

    # How

    def _check_allowed(self, config: RepositoryConfig | None) -> None:
        rule = self.configuration.current.on_demand
        if rule == "none":
            raise RefusedError("There is no image of this revision, and this installation builds nothing on demand.")
        if rule == "registered" and config is None:
            raise RefusedError("This repository is not registered here. Ask the operator to register it.")

    def _registered(self, repository: str) -> RepositoryConfig | None:
        return next((c for c in self.configuration.current.repositories if str(c.repository) == repository), None)

    def _host_status(self, config: RepositoryConfig) -> HostStatus:
        key = str(config.repository)
        memory = self._rounds.memories.get(key) or RepositoryMemory(key)
        job = self._scheduler.get_job(f"round {key}")
        return HostStatus(
            repository=key,
            looked_at=memory.looked_at,
            next_look_at=job.next_run_time if job else None,
            problem=memory.problem,
        )

    def _repository(self, text: str) -> Repository:
        provider, _, rest = text.partition("/")
        return parse_spec(provider, f"{rest}/HEAD").repository

    def _lock(self, repository: str) -> asyncio.Lock:
        return self._locks.setdefault(repository, asyncio.Lock())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _soon(self) -> None:
        """Publish, with all that changes within the next tenth of a second."""
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_later(_DEBOUNCE, self._publish)

    def _publish(self) -> None:
        self._publishing = None
        new = make_catalogue(
            self.configuration.current,
            self.configuration.problem,
            self._rounds.memories,
            self._builds.latest,
            self._builds.recent(_RECENT),
            web_url=lambda r: self._hosts[r.provider].web_url(r),
            now=self._clock(),
        )
        if self._catalogue is None or new.version != self._catalogue.version:
            self._catalogue = new
            self._begin(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def _stays_failed(latest: BuildEntry, settings: str) -> bool:
    """Whether building again would only fail again."""
    record = latest.record
    return (
        record.state is BuildState.FAILED
        and record.failure is not None
        and latest.recipe == settings
        and record.failure.disposition.value == "stalled"
    )
