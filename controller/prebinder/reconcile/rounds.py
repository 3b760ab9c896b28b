"""One round over one repository: a list of small steps with one signature.

observe   ask the Git host where the refs stand
inspect   ask the image store which of the wanted images exist
submit    plan (pure, see `plan.py`) and queue what is missing; cancel what was superseded
trace     ask the Git host for the commits in between, of which `every-commit` wants images too
collect   drop what nothing shows any more
publish   write the ledger, renew the catalogue

Tips are submitted before the commits in between are even asked for. A step that fails ends the asking, not the round:
what is known is still acted on and published, with the problem in words for people.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import structlog

from prebinder.config import LiveConfiguration
from prebinder.hosts.base import Host
from prebinder.ledger import BuildEntry, Ledger
from prebinder.model.catalogue import RefKind
from prebinder.model.events import BuildState
from prebinder.model.failure import Disposition, HostError, HostUnavailable, PrebinderError, RegistryError
from prebinder.model.images import image_name
from prebinder.model.policy import BuildRule, wanted
from prebinder.model.spec import Provider, Repository
from prebinder.reconcile.builds import Builds, Wanted
from prebinder.reconcile.errors import BuildEnded, QueueFull, UnsupportedHost
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.plan import moved, plan, recipe
from prebinder.reconcile.views import RepositoryView
from prebinder.registry.base import ImageStore

log = structlog.get_logger(__name__)

T = TypeVar("T")
_ROUNDS_AT_ONCE = 8
_QUESTIONS_AT_ONCE = 8
_TRACES = 20
"""Most refs of a round whose commits are asked for; the next round goes on."""
_LOOKS_BACK = 10
"""Images of earlier revisions that a round looks for, to notice deleted ones."""
_CROWDED_PAUSE = 30.0
"""Seconds until a round comes back that found the queue full."""
_KEPT_REVISIONS = 200
"""Revisions that no ref stands at, shown for each repository."""


@dataclass(slots=True)
class Round:
    """What one round has found out so far."""

    view: RepositoryView
    cause: str
    unknown: set[str] = field(default_factory=set)
    """Revisions whose image could not be looked for."""
    problem: str | None = None
    host_problem: str | None = None
    """The problem, when it is the Git host's."""
    retry_after: float | None = None
    """The pause that the Git host asked for when it was asked for the refs."""
    crowded: bool = False
    """The queue was full: what is missing is submitted by the next round."""

    @property
    def scheduled(self) -> bool:
        return self.cause == "schedule"


class Rounds:
    """Runs rounds. `later` postpones the next round of a repository, `changed` renews the catalogue."""

    def __init__(
        self,
        *,
        configuration: LiveConfiguration,
        ledger: Ledger,
        hosts: Mapping[Provider, Host],
        images: ImageStore,
        builds: Builds,
        metrics: Metrics,
        clock: Callable[[], datetime],
        changed: Callable[[str], None],
        later: Callable[[str, float], None],
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._hosts = hosts
        self._images = images
        self._builds = builds
        self._metrics = metrics
        self._clock = clock
        self._changed = changed
        self._later = later
        self._room = asyncio.Semaphore(_ROUNDS_AT_ONCE)
        self._paused: dict[tuple[str, str], tuple[datetime, str]] = {}
        """Until when a host is not asked a question, and its words; its other questions go on."""
        self._looked_back: dict[str, int] = {}
        self.steps: tuple[Callable[[Round], Awaitable[None]], ...] = (
            self.observe,
            self.inspect,
            self.submit,
            self.trace,
            self.submit,
            self.collect,
            self.publish,
        )

    async def run(self, view: RepositoryView, cause: str) -> None:
        """One round. Never raises: a problem is written to the repository."""
        try:
            self.check_pause(view.repository, "refs")
        except HostUnavailable as pause:
            self._later(view.key, pause.retry_after or 0.0)
            return
        async with self._room:
            round_ = Round(view, cause)
            for step in self.steps:
                try:
                    await step(round_)
                except PrebinderError as error:
                    self._note(round_, error)
                except Exception as error:
                    log.exception("round.defect", repository=view.key, step=step.__name__)
                    self._note(round_, PrebinderError(f"A defect of Prebinder: {type(error).__name__}."))
        self._sum_up(round_)

    # Questions

    def host(self, repository: Repository) -> Host:
        """The host of a repository. Raises UnsupportedHost."""
        host = self._hosts.get(repository.provider)
        if host is None:
            raise UnsupportedHost(f"This installation does not reach {repository.provider.display_name} repositories.")
        return host

    async def ask(self, repository: Repository, question: str, answer: Awaitable[T]) -> T:
        """Count a question to a Git host, and keep the pause that it asks for."""
        result = "error"
        try:
            value = await answer
            result = "ok"
        except HostUnavailable as error:
            if error.retry_after is not None:
                until = self._clock() + timedelta(seconds=error.retry_after)
                self._paused[_server(repository), question] = until, str(error)
            raise
        finally:
            self._metrics.questions.labels(repository.provider.value, question, result).inc()
        return value

    def check_pause(self, repository: Repository, question: str) -> None:
        """Raises HostUnavailable while the pause lasts that the host asked for at such a question."""
        if paused := self._paused.get((_server(repository), question)):
            until, words = paused
            if (rest := until - self._clock()) > timedelta(0):
                raise HostUnavailable(words, rest.total_seconds())

    def wanted(self, view: RepositoryView, revision: str) -> str:
        """The reference of the image of a revision."""
        return str(image_name(self._configuration.current.registry.image_prefix, view.repository, revision))

    def latest(self, view: RepositoryView, revision: str) -> BuildEntry | None:
        return self._builds.latest(self.wanted(view, revision))

    # Steps

    async def observe(self, round_: Round) -> None:
        view, asked_at = round_.view, round_.view.pushes
        first = view.memory.looked_at is None
        try:
            refs = await self.ask(view.repository, "refs", self.host(view.repository).list_refs(view.repository))
        except HostUnavailable as error:
            round_.retry_after = error.retry_after
            raise
        now = self._clock()
        news = view.look(refs, asked_at, now)
        if round_.scheduled and not first:
            view.note(webhook_missed=news)
        listed = wanted(view.config.policy, view.as_refs())
        view.see([ref.revision for ref in (*listed, *view.as_refs().refs)], now)
        self._changed(view.key)

    async def inspect(self, round_: Round) -> None:
        """Wanted images: on schedule all of them, so that deleted ones are noticed; else those not known to exist."""
        view = round_.view
        tips = [ref.revision for ref in wanted(view.config.policy, view.as_refs())]
        have = {r for r, memory in view.revisions.items() if memory.image is not None}
        ask = [r for r in dict.fromkeys(tips) if round_.scheduled or r not in have]
        if round_.scheduled:
            ask += self._look_back(view, have - set(tips))
        prefix = self._configuration.current.registry.image_prefix
        room = asyncio.Semaphore(_QUESTIONS_AT_ONCE)
        problems: list[RegistryError] = []

        async def look(revision: str) -> None:
            async with room:
                if problems:  # it is away: no need to wait for every single question
                    round_.unknown.add(revision)
                    return
                last = self.latest(view, revision)
                if last is not None and not last.record.state.finished:
                    return
                try:
                    image = await self._images.launchable(image_name(prefix, view.repository, revision))
                except RegistryError as error:
                    problems.append(error)
                    round_.unknown.add(revision)
                    return
                if last is self.latest(view, revision):  # else a build ended meanwhile, which knows better
                    view.set_image(revision, image, self._clock())

        await asyncio.gather(*(look(revision) for revision in ask))
        self._changed(view.key)
        if problems:
            raise problems[0]

    async def submit(self, round_: Round) -> None:
        view, configuration = round_.view, self._configuration.current
        policy, limits = view.config.policy, configuration.limits
        builds = {r: entry for r in view.revisions if (entry := self.latest(view, r)) is not None}
        failures = {
            r: await self._ledger.failures(entry.record.image)
            for r, entry in builds.items()
            if entry.record.state is BuildState.FAILED
            and entry.record.failure is not None
            and entry.record.failure.disposition is Disposition.RETRY
        }
        settings = recipe(configuration, view.config)
        todo = plan(
            policy,
            view.config.priority,
            view.as_refs(),
            view.revisions,
            builds,
            unknown=round_.unknown,
            failures=failures,
            settings=settings,
            commits=limits.commits,
            pause=limits.backoff_max,
            now=self._clock(),
        )
        for build_id in todo.superseded:
            try:
                await self._builds.cancel(build_id, superseded=True)
            except BuildEnded:
                continue
        await view.save(self._ledger)
        for planned in todo.builds:
            image = image_name(configuration.registry.image_prefix, view.repository, planned.revision)
            try:
                await self._builds.submit(
                    Wanted(
                        view.repository,
                        planned.ref,
                        planned.revision,
                        image,
                        planned.wish,
                        planned.priority,
                        settings,
                    )
                )
            except QueueFull:
                log.warning("round.queue-full", repository=view.key)
                round_.crowded = True
                break

    async def trace(self, round_: Round) -> None:
        """The commits since the last look, of the refs that moved. A failure leaves them for the next round."""
        view = round_.view
        if round_.retry_after is not None:
            return
        policy, limit = view.config.policy, self._configuration.current.limits.commits
        every = policy.build is BuildRule.EVERY_COMMIT
        host = self.host(view.repository)
        for move in moved(policy, view.refs.values(), view.as_refs())[:_TRACES]:
            key = (move.ref.kind, move.ref.name)
            self.check_pause(view.repository, "commits")
            between = every and move.ref.kind is RefKind.BRANCH
            old = move.old if between else None
            commits = await self.ask(
                view.repository,
                "commits",
                host.commits_between(view.repository, old, move.ref.revision, limit if between else 1),
            )
            view.trace(key, commits, between=between, now=self._clock())
            view.cover(key, move.ref.revision)
        self._changed(view.key)

    async def collect(self, round_: Round) -> None:
        view = round_.view
        surplus = [
            r
            for r in view.surplus(_KEPT_REVISIONS)
            if (last := self.latest(view, r)) is None or last.record.state.finished
        ]
        for revision in surplus:
            del view.revisions[revision]
        if surplus:
            await self._ledger.forget(view.key, surplus)

    async def publish(self, round_: Round) -> None:
        view = round_.view
        view.host_problem = round_.host_problem
        if round_.problem != view.memory.problem:
            view.note(problem=round_.problem)
        self._changed(view.key)
        await view.save(self._ledger)

    # How

    def _look_back(self, view: RepositoryView, have: set[str]) -> list[str]:
        """A few known images, other ones each time."""
        order = sorted(have)
        start = self._looked_back.get(view.key, 0) % max(len(order), 1)
        self._looked_back[view.key] = start + _LOOKS_BACK
        return (order[start:] + order[:start])[:_LOOKS_BACK]

    def _note(self, round_: Round, error: PrebinderError) -> None:
        if round_.problem is None:
            round_.problem = str(error)
        if isinstance(error, HostError):
            round_.host_problem = round_.host_problem or str(error)

    def _sum_up(self, round_: Round) -> None:
        """The one place that decides when to come back."""
        view, configuration = round_.view, self._configuration.current
        self._metrics.rounds.labels(round_.cause, "problem" if round_.problem else "ok").inc()
        if round_.problem is None:
            view.failures = 0
            if round_.crowded:
                self._later(view.key, min(_CROWDED_PAUSE, configuration.polling.interval))
            return
        view.failures += 1
        pause = min(configuration.limits.backoff * 2 ** min(view.failures - 1, 20), configuration.polling.interval)
        self._later(view.key, max(pause, round_.retry_after or 0.0, 0.1))
        log.warning("round.problem", repository=view.key, problem=round_.problem, failures=view.failures)


def _server(repository: Repository) -> str:
    """Who asks for pauses: a host of many repositories asks for all of them."""
    if repository.provider is Provider.GIT:
        return urlsplit(repository.name).netloc
    return repository.provider.value
