"""The catalogue, made from what the controller knows, and who is told of a new one.

A burst of changes is one new catalogue. Each version is unique to its content, and later ones sort after earlier ones,
also over restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

from prebinder.config import Configuration
from prebinder.ledger import BuildEntry, RevisionMemory
from prebinder.model.catalogue import BuildSummary, Catalogue, ImageState, RefEntry, RepositoryEntry, RevisionEntry
from prebinder.model.events import BuildRecord, BuildState
from prebinder.reconcile.views import RepositoryView

DEBOUNCE = 0.05
RECENT_BUILDS = 20


def revision_entry(memory: RevisionMemory, last: BuildEntry | None) -> RevisionEntry:
    """The state of one revision's image: the store's word first, then that of the newest build."""
    record = last.record if last else None
    state, since = ImageState.ABSENT, memory.image_since or memory.first_seen
    if memory.image is not None:
        state = ImageState.READY
    elif record is not None:
        match record.state:
            case BuildState.QUEUED:
                state, since = ImageState.QUEUED, record.queued_at
            case BuildState.RUNNING:
                state, since = ImageState.BUILDING, record.started_at or record.queued_at
            case BuildState.FAILED:
                state, since = ImageState.FAILED, record.finished_at or record.queued_at
            case BuildState.READY | BuildState.CANCELLED:
                pass
    failed = record if state is ImageState.FAILED else None
    return RevisionEntry(
        revision=memory.revision,
        state=state,
        since=since,
        image=memory.image,
        summary=memory.summary or None,
        build=record.id if record else None,
        failure=failed.failure if failed else None,
        message=failed.message if failed else None,
    )


def repository_entry(
    view: RepositoryView,
    builds: Callable[[str], BuildEntry | None],
    *,
    url: str,
    now: datetime,
    interval: float,
) -> RepositoryEntry:
    """One repository of the catalogue; `builds` gives the newest build of a revision."""
    memory = view.memory
    fresh = memory.webhook_at is not None and now - memory.webhook_at <= timedelta(seconds=2 * interval)
    newest = sorted(view.revisions.values(), key=lambda m: m.position, reverse=True)
    seen = {
        "default_branch": memory.default_branch,
        "looked_at": max((t for t in (memory.looked_at, memory.webhook_at) if t), default=None),
        "fed_by_webhook": fresh and not memory.webhook_missed,
        "problem": memory.problem,
        "refs": tuple(RefEntry(name=r.name, kind=r.kind, revision=r.revision) for r in view.refs.values()),
        "revisions": tuple(revision_entry(m, builds(m.revision)) for m in newest),
    }
    return view.config.entry(url).model_copy(update=seen)


def build_summary(record: BuildRecord) -> BuildSummary:
    at = record.finished_at or record.started_at or record.queued_at
    took = (record.finished_at - record.started_at) if record.finished_at and record.started_at else None
    return BuildSummary(
        id=record.id,
        repository=record.repository,
        ref=record.ref,
        revision=record.revision,
        state=record.state,
        at=at,
        seconds=took.total_seconds() if took is not None else None,
        failure=record.failure,
    )


class Publisher:
    """Holds the catalogue in force. `compose` gives its repositories and recent builds."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        compose: Callable[[], tuple[Configuration, str | None, tuple[RepositoryEntry, ...], tuple[BuildSummary, ...]]],
    ) -> None:
        self._clock = clock
        self._compose = compose
        self._catalogue: Catalogue | None = None
        self._content = ""
        self._stale = True
        self._timer: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self._closed = False

    def changed(self) -> None:
        """Something that the catalogue shows may have changed: look soon."""
        self._stale = True
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(DEBOUNCE, self._look)

    def current(self) -> Catalogue:
        """The catalogue as of now."""
        if self._stale or self._catalogue is None:
            self._make()
        assert self._catalogue is not None
        return self._catalogue

    async def changes(self) -> AsyncIterator[Catalogue]:
        """The catalogue now, then each new one; a slow reader misses those in between. Ends when we close."""
        shown = ""
        while not self._closed:
            news = self._news
            catalogue = self.current()
            if catalogue.version != shown:
                shown = catalogue.version
                yield catalogue
            elif not self._closed:
                await news.wait()

    def close(self) -> None:
        """Nobody is told anything any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._news.set()

    def _look(self) -> None:
        self._timer = None
        if self._stale:
            self._make()

    def _make(self) -> None:
        self._stale = False
        configuration, problem, repositories, recent = self._compose()
        now = self._clock()
        catalogue = Catalogue(
            version="",
            published_at=now,
            on_demand=configuration.on_demand,
            image_prefix=configuration.registry.image_prefix,
            repositories=repositories,
            recent_builds=recent,
            configuration_problem=problem,
        )
        content = hashlib.sha256(catalogue.model_dump_json(exclude={"version", "published_at"}).encode()).hexdigest()
        if content == self._content:
            return
        moment = int(now.timestamp() * 1000)
        if self._catalogue is not None:
            moment = max(moment, int(self._catalogue.version.partition("-")[0], 16) + 1)
        self._content = content
        self._catalogue = catalogue.model_copy(update={"version": f"{moment:012x}-{content[:12]}"})
        news, self._news = self._news, asyncio.Event()
        news.set()
