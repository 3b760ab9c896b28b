"""The catalogue in the endpoint's memory: followed from the controller, found by what a link names.

The endpoint starts while the controller is away: from its last copy on disk, or else from the configuration, which
says what is registered; then a click asks the Git host and the image store. Clicks only read memory. After each
change the site is generated again, in the background, so that a click never waits for pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import structlog
from httpx_sse import SSEError, aconnect_sse

from prebinder.model.catalogue import Catalogue, ImageState, RefKind, RepositoryEntry
from prebinder.model.failure import SpecError
from prebinder.model.spec import HEAD, Provider, Repository, is_revision, parse_spec
from prebinder_site.settings import EndpointSettings

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0
_TIMEOUT = httpx.Timeout(10, connect=3, read=60)
_PATIENCE = 15.0
"""How long a new endpoint waits for its first catalogue, in seconds, before it serves without."""


@dataclass(frozen=True)
class Registered:
    """One registered repository, indexed for clicks."""

    repository: Repository
    """In the registered spelling, which is that of its images."""
    entry: RepositoryEntry

    @cached_property
    def _refs(self) -> dict[tuple[RefKind, str], str]:
        return {(r.kind, r.name): r.revision for r in self.entry.refs}

    @cached_property
    def _images(self) -> dict[str, str]:
        return {r.revision: r.image for r in self.entry.revisions if r.state is ImageState.READY and r.image}

    def revision_of(self, ref: str) -> str | None:
        """As `RepositoryEntry.revision_of`, without a search."""
        if is_revision(ref):
            return ref
        default = self._refs.get((RefKind.BRANCH, self.entry.default_branch or ""))
        if ref == HEAD:
            return default
        found = self._refs.get((RefKind.BRANCH, ref)) or self._refs.get((RefKind.TAG, ref))
        return found or (default if ref in ("main", "master") else None)

    def falls_back_to_head(self, ref: str) -> bool:
        """Whether `ref` is a customary name of a default branch that has another name here."""
        return ref in ("main", "master") and not {(RefKind.BRANCH, ref), (RefKind.TAG, ref)} & self._refs.keys()

    def image_of(self, revision: str) -> str | None:
        """What the Hub starts, when the image is ready."""
        return self._images.get(revision)


@dataclass(frozen=True)
class Index:
    """A catalogue, found by repository in one step."""

    catalogue: Catalogue
    _by_repository: dict[str, Registered] = field(default_factory=dict)

    @classmethod
    def of(cls, catalogue: Catalogue) -> Index:
        found: dict[str, Registered] = {}
        for entry in catalogue.repositories:
            provider, _, escaped = entry.repository.partition("/")
            try:
                repository = parse_spec(provider, f"{escaped}/{HEAD}").repository
            except SpecError as error:
                log.warning("catalogue.entry.unreadable", repository=entry.repository, reason=str(error))
                continue
            found[_key(repository)] = Registered(repository, entry)
        return cls(catalogue, found)

    def find(self, repository: Repository) -> Registered | None:
        return self._by_repository.get(_key(repository))


def _key(repository: Repository) -> str:
    """GitHub ignores case in names; the other hosts may not."""
    text = str(repository)
    return text.casefold() if repository.provider is Provider.GITHUB else text


def first_catalogue(settings: EndpointSettings) -> Catalogue:
    """What is served before the first word from a controller: the configuration's repositories, without refs."""
    return Catalogue(
        version="",
        published_at=datetime.fromtimestamp(0, UTC),
        on_demand=settings.on_demand,
        image_prefix=settings.image_prefix,
        repositories=settings.registered,
    )


class CatalogueFollower:
    """Keeps `index` as the controller's catalogue is; calls `publish` (blocking, in a thread) after each change."""

    def __init__(
        self, controller: httpx.AsyncClient, copy: Path, first: Catalogue, publish: Callable[[Catalogue], Any]
    ) -> None:
        """`first` is served when there is no `copy` of an earlier catalogue."""
        self._controller = controller
        self._copy = copy
        self._publish = publish
        self.index = Index.of(_read(copy) or first)
        self.connected = False
        """Whether the controller's changes arrive now."""
        self._patient_until = time.monotonic() + _PATIENCE
        self._changed = asyncio.Event()
        self._changed.set()

    @property
    def ready(self) -> bool:
        """Whether clicks are best served by now: with a catalogue, or without when the controller stays silent."""
        return bool(self.index.catalogue.version) or time.monotonic() > self._patient_until

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._keep_published())

    async def refresh(self) -> None:
        """Fetch the catalogue if it changed. Raises httpx.HTTPError or ValueError."""
        version = self.index.catalogue.version
        headers = {"If-None-Match": f'"{version}"'} if version else {}
        response = await self._controller.get("/api/catalogue", headers=headers, timeout=_TIMEOUT)
        if response.status_code == 304:
            return
        response.raise_for_status()
        catalogue = await asyncio.to_thread(Catalogue.model_validate_json, response.content)
        if catalogue.version == version:
            return
        self.index = Index.of(catalogue)
        self._changed.set()

    async def _follow(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                async with aconnect_sse(self._controller, "GET", "/api/catalogue/events", timeout=_TIMEOUT) as source:
                    source.response.raise_for_status()
                    async for event in source.aiter_sse():
                        if event.json().get("version") != self.index.catalogue.version:
                            await self.refresh()
                        self.connected, pause = True, _FIRST_PAUSE
            except (httpx.HTTPError, SSEError, ValueError, AttributeError) as error:
                if self.connected or pause == _FIRST_PAUSE:
                    log.warning("catalogue.controller.away", reason=repr(error), kept=self.index.catalogue.version)
            self.connected = False
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _keep_published(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._changed.wait()
            self._changed.clear()
            catalogue = self.index.catalogue
            try:
                if catalogue.version:
                    await asyncio.to_thread(_write, self._copy, catalogue)
                await asyncio.to_thread(self._publish, catalogue)
                pause = _FIRST_PAUSE
            except OSError as error:
                # A full disk must not end the following: clicks still work from memory.
                log.error("site.publish.failed", reason=str(error))
                self._changed.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except Exception:
                # A page that cannot be rendered must not end the following either; the next change tries again.
                log.exception("site.publish.failed")


def _read(copy: Path) -> Catalogue | None:
    try:
        return Catalogue.model_validate_json(copy.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("catalogue.copy.unreadable", path=str(copy), reason=type(error).__name__)
        return None


def _write(copy: Path, catalogue: Catalogue) -> None:
    """Replace the copy whole or not at all."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    new = copy.with_suffix(".new")
    try:
        new.write_text(catalogue.model_dump_json(), encoding="utf-8")
        new.replace(copy)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
