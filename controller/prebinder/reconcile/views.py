"""What the controller knows of one registered repository, in memory; the ledger holds the same for after a restart.

All changes happen on the event loop, without a pause inside; `save` writes what changed since the last time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from prebinder.config import RepositoryConfig
from prebinder.hosts.base import Commit
from prebinder.ledger import Ledger, RepositoryMemory, RevisionMemory
from prebinder.ledger.records import RefMemory
from prebinder.model.catalogue import RefKind
from prebinder.model.policy import Ref, Refs
from prebinder.model.spec import Repository

_GAP = 2048
"""Room between the positions of two looks, for the commits in between (`limits.commits` is at most 1000)."""

RefKey = tuple[RefKind, str]


@dataclass(slots=True)
class RepositoryView:
    """One registered repository."""

    config: RepositoryConfig
    memory: RepositoryMemory
    refs: dict[RefKey, RefMemory] = field(default_factory=dict)
    revisions: dict[str, RevisionMemory] = field(default_factory=dict)
    pushes: int = 0
    """Webhooks that named a revision, counted."""
    pushed: dict[RefKey, int] = field(default_factory=dict)
    """At which of them a ref was moved: an older answer of the host does not move it back."""
    failures: int = 0
    """Looks in a row that failed."""
    host_problem: str | None = None
    """Why the Git host did not answer at the last look of this process."""
    changed: bool = False
    _refs_changed: bool = False
    _revised: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, config: RepositoryConfig, memory: RepositoryMemory | None) -> RepositoryView:
        memory = memory or RepositoryMemory(str(config.repository))
        refs = {(ref.kind, ref.name): ref for ref in memory.refs}
        return cls(config, memory, refs, dict(memory.revisions))

    @property
    def repository(self) -> Repository:
        return self.config.repository

    @property
    def key(self) -> str:
        return self.memory.repository

    def as_refs(self) -> Refs:
        """The refs as `policy` takes them."""
        refs = tuple(Ref(ref.name, ref.kind, ref.revision) for ref in self.refs.values())
        return Refs(refs, self.memory.default_branch)

    def revision_of_branch(self, name: str) -> str | None:
        ref = self.refs.get((RefKind.BRANCH, name))
        return ref.revision if ref else None

    def note(self, **changes: object) -> None:
        """Change fields of the repository itself."""
        self.memory = replace(self.memory, **changes)  # type: ignore[arg-type]
        self.changed = True

    def look(self, refs: Refs, asked_at: int, now: datetime) -> bool:
        """Take over what the host listed, asked when `pushes` was `asked_at`. True when it was news."""
        seen: dict[RefKey, RefMemory] = {}
        for ref in refs.refs:
            key = (ref.kind, ref.name)
            have = self.refs.get(key)
            newer = self.pushed.get(key, 0) > asked_at
            revision = have.revision if have and newer else ref.revision
            seen[key] = RefMemory(ref.kind, ref.name, revision, have.covered if have else None)
        for key, have in self.refs.items():
            if key not in seen and self.pushed.get(key, 0) > asked_at:
                seen[key] = have
        before = {key: ref.revision for key, ref in self.refs.items()}
        news = before != {key: ref.revision for key, ref in seen.items()}
        if news:
            self.refs = seen
            self._refs_changed = True
        self.note(looked_at=now, default_branch=refs.default_branch, problem=None)
        return news

    def push(self, key: RefKey, revision: str, now: datetime) -> None:
        """A webhook says that a ref stands at a revision."""
        have = self.refs.get(key)
        self.pushes += 1
        self.pushed[key] = self.pushes
        self.refs[key] = RefMemory(*key, revision, have.covered if have else None)
        self._refs_changed = True
        self.changed = True
        self.see([revision], now)

    def see(self, revisions: Iterable[str], now: datetime) -> None:
        """Make sure that revisions are known; those not seen before become the newest, the first of them newest."""
        new = [r for r in dict.fromkeys(revisions) if r not in self.revisions]
        top = max((m.position for m in self.revisions.values()), default=0)
        for place, revision in enumerate(reversed(new), start=1):
            self.revise(RevisionMemory(revision, top + place * _GAP, now))

    def trace(self, key: RefKey, commits: tuple[Commit, ...], *, between: bool, now: datetime) -> None:
        """Take over the commits (newest first) that brought a ref where it stands."""
        ref = self.refs.get(key)
        if ref is None or not commits:
            return
        tip = self.revisions.get(commits[0].revision)
        top = tip.position if tip else max((m.position for m in self.revisions.values()), default=0) + _GAP
        for place, commit in enumerate(commits):
            have = self.revisions.get(commit.revision)
            if have is None:
                if place and not between:
                    continue
                have = RevisionMemory(commit.revision, top - place, now, via=ref.name if place else None)
            self.revise(replace(have, summary=commit.summary or have.summary))

    def cover(self, key: RefKey, revision: str) -> None:
        """The commits of a ref up to a revision have been asked for."""
        if ref := self.refs.get(key):
            self.refs[key] = replace(ref, covered=revision)
            self._refs_changed = True

    def revise(self, revision: RevisionMemory) -> None:
        if self.revisions.get(revision.revision) != revision:
            self.revisions[revision.revision] = revision
            self._revised.add(revision.revision)
            self.changed = True

    def set_image(self, revision: str, image: str | None, now: datetime) -> bool:
        """Whether and what image there is. True when that is news."""
        have = self.revisions.get(revision)
        if have is None:
            self.see([revision], now)
            have = self.revisions[revision]
        if have.image == image:
            return False
        since = have.image_since if have.image and image and have.image_since else now
        self.revise(replace(have, image=image, image_since=since))
        return True

    def surplus(self, keep: int) -> list[str]:
        """Revisions that no ref stands at, beyond the `keep` newest of them."""
        shown = {ref.revision for ref in self.refs.values()}
        loose = sorted((m for r, m in self.revisions.items() if r not in shown), key=lambda m: m.position)
        return [m.revision for m in loose[: max(len(loose) - keep, 0)]]

    async def save(self, ledger: Ledger) -> None:
        """Write what changed."""
        if not self.changed:
            return
        refs_changed, revised = self._refs_changed, [self.revisions[r] for r in self._revised if r in self.revisions]
        self.changed, self._refs_changed, self._revised = False, False, set()
        memory = replace(self.memory, refs=tuple(self.refs.values()))
        try:
            await ledger.remember(memory, refs_changed=refs_changed, revised=revised)
        except BaseException:
            self.changed = True
            self._refs_changed |= refs_changed
            self._revised |= {m.revision for m in revised}
            raise
