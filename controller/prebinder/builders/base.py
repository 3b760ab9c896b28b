"""What the rest of Prebinder asks of a builder.

A builder makes the image of one revision, tells what happens as it happens, and says at the end whether there is an
image. It never retries: the queue does, by the kind of failure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from prebinder.model.events import Phase
from prebinder.model.images import ImageName
from prebinder.model.spec import Repository


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """All that a builder needs to know. Sizes in bytes, times in seconds."""

    id: str
    repository: Repository
    clone_url: str
    revision: str
    ref: str
    image: ImageName
    build_pack: str
    """`auto` or `pip`."""
    base_image: str | None
    push: bool
    """Push to the registry when built; else the image stays in the engine's own store."""
    time_limit: float
    memory_limit: int
    log_limit: int
    disk_limit: int
    trusted: bool = False
    """Its revision came by the name of a branch or tag, so from somebody who may push to the repository. Any other name
    (a commit, `pull/7/head`) may lead to anybody's."""
    attempt: int = 1
    """Which attempt at this build it is."""
    resumed: bool = False
    """The controller started this attempt before it restarted: go on with it, never begin anew."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that a running build says: a phase, and a message or a piece of log that ends in a newline."""

    phase: Phase
    message: str


class Builder(Protocol):
    """Makes images."""

    keeps_running: bool
    """Whether a build goes on while no controller runs. Then a restarted controller calls `build` with
    `order.resumed`, and gets everything that the build said, from the first line; when nothing is left of it,
    BuildFailed of kind INTERRUPTED."""

    def detach(self) -> None:
        """The controller stops: from now on closing a build's iterator leaves the build running, where
        `keeps_running`."""
        ...

    def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        """Run the build. The iterator ends when there is an image, or raises BuildFailed.

        Closing the iterator early (`aclose`) cancels the build and leaves no process behind. Phases come in order:
        fetching, building, pushing (when it pushes).
        """
        ...

    async def adopt(self) -> None:
        """At the start: end or take over what an earlier controller left running."""
        ...

    async def health(self) -> None:
        """Raises EngineError when nothing can be built now."""
        ...
