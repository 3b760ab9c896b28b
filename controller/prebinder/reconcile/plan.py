"""What a round decides: pure functions of the policy, the refs and what was built before.

- Where a wanted ref stands (a *tip*) comes first, in the order of `policy.wanted`.
- With `every-commit`, the commits that a push brought come after all tips, at the lowest priority, newest first, and
  never more than `limits.commits`.
- A failure that a person must mend is not tried again until the revision or the settings change; a failure of the
  surroundings is, after a pause that doubles.
- With `newest`, a build that no ref stands at any more is superseded, unless a person asked for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from prebinder.config import Configuration, RepositoryConfig
from prebinder.ledger import BuildEntry, RevisionMemory, Wish
from prebinder.ledger.records import RefMemory
from prebinder.model.events import BuildState, Priority
from prebinder.model.failure import Disposition
from prebinder.model.policy import BuildRule, Policy, Ref, Refs, wanted
from prebinder.model.spec import HEAD

LONGEST_PAUSE = 86400.0


@dataclass(frozen=True, slots=True)
class Move:
    """A wanted ref that stands elsewhere than where its commits were last asked for."""

    ref: Ref
    old: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """One build to submit."""

    revision: str
    ref: str
    wish: Wish
    priority: Priority


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one repository."""

    builds: tuple[Planned, ...] = ()
    superseded: tuple[str, ...] = ()
    """Ids of builds to cancel."""


def recipe(configuration: Configuration, repository: RepositoryConfig | None) -> str:
    """Digest of all settings that the outcome of a build depends on, beside the revision."""
    builder, limits = configuration.builder, configuration.limits
    pack = (repository.build_pack if repository else None) or builder.build_pack
    parts = (pack, builder.base_image, builder.engine, builder.content_providers)
    sizes = (limits.time, limits.memory, limits.log, limits.disk)
    return hashlib.sha256(repr((parts, sizes)).encode()).hexdigest()[:16]


def moved(policy: Policy, before: Collection[RefMemory], refs: Refs) -> tuple[Move, ...]:
    """The wanted refs whose commits since the last look are still to be asked for, most wanted first."""
    covered = {(ref.kind, ref.name): ref.covered for ref in before}
    return tuple(
        Move(ref, covered.get((ref.kind, ref.name)))
        for ref in wanted(policy, refs)
        if covered.get((ref.kind, ref.name)) != ref.revision
    )


def plan(
    policy: Policy,
    priority: Priority,
    refs: Refs,
    revisions: Mapping[str, RevisionMemory],
    builds: Mapping[str, BuildEntry],
    *,
    unknown: Collection[str] = (),
    failures: Mapping[str, int] | None = None,
    settings: str,
    commits: int,
    pause: float,
    now: datetime,
) -> Plan:
    """Which revisions to build now.

    `revisions` says which images exist, `builds` holds the newest build of each revision, `unknown` the revisions whose
    image could not be looked for (nothing is done about them), `failures` how often each has failed in a row; `pause`
    is the time in seconds before a failure of the surroundings is tried anew.
    """

    def needed(revision: str) -> bool:
        memory = revisions.get(revision)
        if revision in unknown or (memory is not None and memory.image is not None):
            return False
        last = builds.get(revision)
        return last is None or may_build_again(last, settings, (failures or {}).get(revision, 1), pause, now)

    tips: dict[str, Ref] = {}
    for ref in wanted(policy, refs):
        tips.setdefault(ref.revision, ref)
    chosen = [Planned(revision, ref.name, Wish.TIP, priority) for revision, ref in tips.items() if needed(revision)]
    if policy.build is BuildRule.EVERY_COMMIT:
        between = sorted(
            (m for m in revisions.values() if m.via is not None and m.revision not in tips),
            key=lambda m: m.position,
            reverse=True,
        )[:commits]
        chosen += [
            Planned(m.revision, m.via or HEAD, Wish.COMMIT, Priority.LOW)
            for m in between
            if m.revision not in builds and needed(m.revision)
        ]
    superseded: tuple[str, ...] = ()
    if policy.build is BuildRule.NEWEST:
        superseded = tuple(
            entry.record.id
            for revision, entry in builds.items()
            if not entry.record.state.finished and entry.wish is not Wish.PERSON and revision not in tips
        )
    return Plan(tuple(chosen), superseded)


def may_build_again(last: BuildEntry, settings: str, failures: int, pause: float, now: datetime) -> bool:
    """Whether the policy may build a revision without an image again, given its newest build."""
    record = last.record
    match record.state:
        case BuildState.QUEUED | BuildState.RUNNING:
            return False
        case BuildState.READY:
            return True  # it was there and is gone from the store
        case BuildState.CANCELLED:
            return last.superseded
        case BuildState.FAILED:
            if last.recipe != settings:
                return True
            if record.failure is None or record.failure.disposition is not Disposition.RETRY:
                return False
            wait = min(pause * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
            return record.finished_at is None or now >= record.finished_at + timedelta(seconds=wait)
