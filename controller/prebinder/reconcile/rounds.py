"""A round over one repository: observe, collect, plan, submit. Level-triggered, one at a time for each repository.

A round compares what the policy wants of the refs with the images that exist and the builds that wait or run, and acts
on the difference. Whatever was missed (a lost webhook, a restart, a deleted image) the next round finds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

import structlog

from prebinder.config import LiveConfiguration, RepositoryConfig
from prebinder.hosts.base import Commit, Host
from prebinder.ledger import BuildEntry, Ledger, RepositoryMemory, RevisionMemory
from prebinder.ledger.records import RefMemory
from prebinder.model.failure import HostError, PrebinderError
from prebinder.model.images import image_name
from prebinder.model.policy import BuildRule, Ref, Refs
from prebinder.model.spec import Provider
from prebinder.reconcile.builds import Builds, Wanted
from prebinder.reconcile.errors import BuildEnded, QueueFull
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.plan import Plan, Planned, moved, plan, recipe
from prebinder.registry.base import ImageStore

log = structlog.get_logger(__name__)

T = TypeVar("T")

REVISIONS_KEPT = 500


class Rounds:
    """Rounds over registered repositories; `memories` is what they found, kept in step with the ledger."""

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
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._hosts = hosts
        self._images = images
        self._builds = builds
        self._metrics = metrics
        self._clock = clock
        self.memories: dict[str, RepositoryMemory] = {}

    async def load(self) -> None:
        """Take up what the ledger remembers."""
        self.memories = await self._ledger.repositories()

    def memory(self, config: RepositoryConfig) -> RepositoryMemory:
        key = str(config.repository)
        return self.memories.get(key) or RepositoryMemory(key)

    async def run(self, config: RepositoryConfig, *, missed: bool = False) -> None:
        """One whole round. With `missed`, a change that it finds is one of which no webhook told.

        Raises HostError after noting it as the repository's problem; what can be done without the host is done.
        """
        before = self.memory(config)
        problem: HostError | None = None
        try:
            refs = await self._ask(config, "list_refs", self._host(config).list_refs(config.repository))
            after = await self._observe(config, before, refs, missed=missed)
        except HostError as error:
            problem = error
            after = replace(before, problem=str(error))
        after, unknown = await self._look_for_images(config, after)
        await self._keep(before, after)
        await self._submit(config, await self._plan(config, after, unknown))
        if problem is not None:
            raise problem

    async def announced(self, config: RepositoryConfig, ref: str, revision: str) -> None:
        """A webhook says where a ref stands: build that at once, before any look at the host."""
        before = self.memory(config)
        known = [r for r in before.refs if r.name == ref]
        now = self._clock()
        after = replace(before, webhook_at=now, webhook_missed=False)
        if len(known) == 1:
            there = replace(known[0], revision=revision)
            after = replace(after, refs=tuple(there if r is known[0] else r for r in before.refs))
            after = _with_commits(after, [Commit(revision, "")], via=None, now=now)
        after, unknown = await self._look_for_images(config, after)
        await self._keep(before, after)
        if len(known) == 1:
            await self._submit(config, await self._plan(config, after, unknown))

    async def built(self, repository: str, revision: str, image: str | None) -> None:
        """A build ended with this image, or without one."""
        before = self.memories.get(repository)
        if before is None or image is None:
            return
        have = before.revisions.get(revision)
        now = self._clock()
        if have is None:
            position = max((r.position for r in before.revisions.values()), default=0) + 1
            have = RevisionMemory(revision, position, now)
        revised = replace(have, image=image, image_since=now)
        await self._keep(before, replace(before, revisions={**before.revisions, revision: revised}))

    # The steps

    async def _observe(
        self, config: RepositoryConfig, before: RepositoryMemory, refs: Refs, *, missed: bool
    ) -> RepositoryMemory:
        """What the host shows now, with the commits that came since the last look."""
        now = self._clock()
        policy, limits = config.policy, self._configuration.current.limits
        covered = {(r.kind, r.name): r.covered for r in before.refs}
        after = before
        moves = moved(policy, before.refs, refs)
        for move in moves:
            every = policy.build is BuildRule.EVERY_COMMIT and move.old is not None
            commits: Sequence[Commit] = await self._ask(
                config,
                "commits_between",
                self._host(config).commits_between(
                    config.repository, move.old if every else None, move.ref.revision, limits.commits
                ),
            )
            after = _with_commits(after, commits, via=move.ref.name if every else None, now=now)
            covered[move.ref.kind, move.ref.name] = move.ref.revision
        return replace(
            after,
            default_branch=refs.default_branch,
            looked_at=now,
            webhook_missed=before.webhook_missed or (missed and bool(moves) and before.looked_at is not None),
            problem=None,
            refs=tuple(
                RefMemory(r.kind, r.name, r.revision, covered.get((r.kind, r.name)))
                for r in refs.refs
                if policy.wants(r, refs.default_branch)
            ),
        )

    async def _look_for_images(
        self, config: RepositoryConfig, memory: RepositoryMemory
    ) -> tuple[RepositoryMemory, set[str]]:
        """Which wanted revisions have an image; and those of which the store did not say."""
        prefix = self._configuration.current.registry.image_prefix
        revisions, unknown = dict(memory.revisions), set[str]()
        tips = {r.revision for r in memory.refs}
        wanted = tips | {r.revision for r in revisions.values() if r.via is not None and r.image is None}
        for revision in wanted:
            have = revisions.get(revision)
            if have is None:
                continue
            try:
                image = await self._images.launchable(image_name(prefix, config.repository, revision))
            except PrebinderError as error:
                log.warning("round.images", repository=memory.repository, problem=str(error))
                unknown |= wanted
                break
            if image != have.image:
                revisions[revision] = replace(have, image=image, image_since=self._clock())
        return replace(memory, revisions=revisions), unknown

    async def _plan(self, config: RepositoryConfig, memory: RepositoryMemory, unknown: set[str]) -> Plan:
        current = self._configuration.current
        refs = Refs(tuple(Ref(r.name, r.kind, r.revision) for r in memory.refs), memory.default_branch)
        builds: dict[str, BuildEntry] = {}
        failures: dict[str, int] = {}
        for revision in memory.revisions:
            reference = str(image_name(current.registry.image_prefix, config.repository, revision))
            if entry := self._builds.latest(reference):
                builds[revision] = entry
                if entry.record.failure is not None and entry.record.state.finished:
                    failures[revision] = await self._ledger.failures(reference)
        return plan(
            config.policy,
            config.priority,
            refs,
            memory.revisions,
            builds,
            unknown=unknown,
            failures=failures,
            settings=recipe(current, config),
            commits=current.limits.commits,
            pause=current.limits.backoff_max,
            now=self._clock(),
        )

    async def _submit(self, config: RepositoryConfig, decided: Plan) -> None:
        current = self._configuration.current
        for build_id in decided.superseded:
            try:
                await self._builds.cancel(build_id, superseded=True)
            except BuildEnded:
                continue
        for planned in decided.builds:
            try:
                await self._builds.submit(self._wanted(config, planned, recipe(current, config)))
            except QueueFull:
                log.warning("round.queue_full", repository=str(config.repository))
                break

    def _wanted(self, config: RepositoryConfig, planned: Planned, settings: str) -> Wanted:
        prefix = self._configuration.current.registry.image_prefix
        return Wanted(
            repository=config.repository,
            ref=planned.ref,
            revision=planned.revision,
            image=image_name(prefix, config.repository, planned.revision),
            wish=planned.wish,
            priority=planned.priority,
            recipe=settings,
        )

    # How

    async def _keep(self, before: RepositoryMemory, after: RepositoryMemory) -> None:
        """In memory and in the ledger, but no more revisions than anybody looks at."""
        tips = {r.revision for r in after.refs}
        ordered = sorted(after.revisions.values(), key=lambda r: r.position, reverse=True)
        gone = [r.revision for r in ordered[REVISIONS_KEPT:] if r.revision not in tips]
        if gone:
            after = replace(after, revisions={k: v for k, v in after.revisions.items() if k not in gone})
        # Another step may have noted a finished image meanwhile: those are kept.
        current = self.memories.get(after.repository)
        if current is not None and current is not before:
            merged = dict(after.revisions)
            for revision, memory in current.revisions.items():
                if revision not in gone and (revision not in merged or (memory.image and not merged[revision].image)):
                    merged[revision] = memory
            after = replace(after, revisions=merged)
        self.memories[after.repository] = after
        revised = [r for k, r in after.revisions.items() if before.revisions.get(k) != r]
        await self._ledger.remember(after, refs_changed=before.refs != after.refs, revised=revised)
        if gone:
            await self._ledger.forget(after.repository, gone)

    def _host(self, config: RepositoryConfig) -> Host:
        return self._hosts[config.repository.provider]

    async def _ask(self, config: RepositoryConfig, question: str, answer: Awaitable[T]) -> T:
        try:
            result = await answer
        except HostError:
            self._metrics.questions.labels(config.repository.provider, question, "failure").inc()
            raise
        self._metrics.questions.labels(config.repository.provider, question, "success").inc()
        return result


def _with_commits(
    memory: RepositoryMemory, commits: Sequence[Commit], *, via: str | None, now: datetime
) -> RepositoryMemory:
    """With these commits (newest first) seen; what is known of them already stays."""
    revisions = dict(memory.revisions)
    position = max((r.position for r in revisions.values()), default=0)
    for commit in reversed(commits):
        have = revisions.get(commit.revision)
        if have is None:
            position += 1
            have = RevisionMemory(commit.revision, position, now)
        revisions[commit.revision] = replace(have, summary=commit.summary or have.summary, via=have.via or via)
    return replace(memory, revisions=revisions)
