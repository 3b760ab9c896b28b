"""A builder that does what the test says, and an image store in memory, for tests of rounds and queue.

The real ones (repo2docker and an engine; a registry over HTTP) are tested in tests/controller/builders and
tests/controller/registry, and the two together with the controller in tests/e2e: here the order of things matters, and
attempts that fail, hang or die in a chosen moment.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from prebinder.builders.base import BuildOrder, Progress
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, EngineError, Failure, FailureKind, RegistryError
from prebinder.model.images import ImageName


@dataclass
class Shelf:
    """An image store: what it holds is in `held`."""

    pushes: bool = True
    held: dict[str, str] = field(default_factory=dict)
    away: str | None = None
    """Set to the reason why the store does not answer."""
    asked: list[str] = field(default_factory=list)

    def put(self, image: ImageName) -> str:
        self.held[str(image)] = f"{image.name}@sha256:{image.tag[:8]:0<64}"
        return self.held[str(image)]

    async def digest(self, image: ImageName) -> str | None:
        launchable = await self.launchable(image)
        return launchable.partition("@")[2] if launchable else None

    async def launchable(self, image: ImageName) -> str | None:
        self.asked.append(str(image))
        await self.health()
        return self.held.get(str(image))

    async def delete(self, image: ImageName) -> bool:
        return self.held.pop(str(image), None) is not None

    async def health(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise RegistryError(self.away)

    async def aclose(self) -> None:
        pass


@dataclass
class ScriptedBuilder:
    """Builds succeed at once, unless told otherwise for a revision (or for all, with `hold_all`)."""

    keeps_running = False
    detached = False

    images: Shelf
    away: str | None = None
    hold_all: bool = False
    orders: list[BuildOrder] = field(default_factory=list)
    """Attempts, in the order in which they began."""
    ended: list[str] = field(default_factory=list)
    """Revisions whose attempt was closed early."""
    adopted: int = 0
    most_at_once: int = 0
    lose_images: bool = False
    """Builds end well, but no image is there."""
    _failures: dict[str, list[FailureKind]] = field(default_factory=lambda: defaultdict(list))
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)
    _now: int = 0

    def fail(self, revision: str, *kinds: FailureKind) -> None:
        """The next attempts at a revision fail so, one each."""
        self._failures[revision] += kinds

    def hold(self, revision: str) -> None:
        """Attempts at a revision wait until `release`."""
        self._gates[revision] = asyncio.Event()

    def release(self, revision: str | None = None) -> None:
        for name, gate in self._gates.items():
            if revision in (None, name):
                gate.set()
        if revision is None:
            self.hold_all = False

    @property
    def revisions(self) -> list[str]:
        return [order.revision for order in self.orders]

    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        self.orders.append(order)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        finished = False
        try:
            yield Progress(Phase.FETCHING, "Cloning.\n")
            yield Progress(Phase.BUILDING, "Step 1.\n")
            if self.hold_all:
                self._gates.setdefault(order.revision, asyncio.Event())
            if gate := self._gates.get(order.revision):
                await gate.wait()
            if kinds := self._failures.get(order.revision):
                kind = kinds.pop(0)
                finished = True
                raise BuildFailed(Failure(kind, f"It ended with {kind.value}."))
            yield Progress(Phase.PUSHING, "Pushing.\n")
            if not self.lose_images:
                self.images.put(order.image)
            finished = True
        finally:
            self._now -= 1
            if not finished:
                self.ended.append(order.revision)

    def detach(self) -> None:
        self.detached = True

    async def adopt(self) -> None:
        self.adopted += 1

    async def health(self) -> None:
        if self.away:
            raise EngineError(self.away)
