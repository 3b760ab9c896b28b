"""One attempt at a build, and the journal in which a build tells what happens.

Guarantees:
- Events are numbered from 1 without gaps over all attempts of a build; the terminal one is the last.
- "Built" is only said of an image that the store then shows: no half image is ever offered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Protocol, cast

from prebinder.builders.base import Builder, BuildOrder
from prebinder.builders.logs import LogStore
from prebinder.model.events import BuildEvent, BuildRecord, Phase
from prebinder.model.failure import BuildFailed, Failure, FailureKind, PrebinderError
from prebinder.registry.base import ImageStore

_ONLY_OURS = frozenset({Phase.BUILT, Phase.FAILED, Phase.LAUNCHING, Phase.READY})


class Closeable(Protocol):
    """An asynchronous generator, as `aclosing` needs it."""

    async def aclose(self) -> Any: ...


class JournalError(PrebinderError):
    """A build's log cannot be written (disk full)."""


class Journal:
    """The event stream of one build."""

    def __init__(self, build_id: str, logs: LogStore, clock: Callable[[], datetime], last: BuildEvent | None) -> None:
        self._id = build_id
        self._logs = logs
        self._clock = clock
        self._last = last
        self._writing = asyncio.Lock()

    @property
    def ended(self) -> BuildEvent | None:
        """The terminal event, once there."""
        return self._last if self._last is not None and self._last.terminal else None

    async def say(
        self, phase: Phase, message: str, *, image: str | None = None, failure: FailureKind | None = None
    ) -> None:
        """Append one event. After the terminal one nothing is added."""
        async with self._writing:
            await self._say(phase, message, image, failure)

    async def _say(self, phase: Phase, message: str, image: str | None, failure: FailureKind | None) -> None:
        if self.ended:
            return
        event = BuildEvent(
            seq=(self._last.seq if self._last else 0) + 1,
            at=self._clock(),
            phase=phase,
            message=message if message.endswith("\n") else message + "\n",
            image=image,
            failure=failure,
        )
        try:
            await self._logs.append(self._id, event)
        except OSError as error:
            raise JournalError(f"The build's log cannot be written: {error.strerror}.") from error
        self._last = event


def said_so_far(events: Sequence[BuildEvent]) -> int:
    """How many characters of its log a running attempt has told: what stands after the last word about waiting, which
    comes between attempts and before the first line of one."""
    count = 0
    for event in reversed(events):
        if event.phase is Phase.WAITING:
            break
        count += len(event.message)
    return count


def end_of(record: BuildRecord, image: str | None, failure: Failure | None) -> BuildEvent:
    """The terminal event of a finished build whose log does not have it. Its number is not known here."""
    at = record.finished_at or record.queued_at
    if image is not None:
        return BuildEvent(seq=1, at=at, phase=Phase.BUILT, message=f"Built image {record.image}.\n", image=image)
    failure = failure or Failure(FailureKind.INTERRUPTED, "The image is not there any more. Click again to build it.")
    return BuildEvent(seq=1, at=at, phase=Phase.FAILED, message=failure.message + "\n", failure=failure.kind)


async def attempt(
    order: BuildOrder,
    builder: Builder,
    images: ImageStore,
    journal: Journal,
    *,
    look_first: bool,
    said_before: int = 0,
) -> tuple[str, str]:
    """Make the image; return what the Hub starts, and the words to say so.

    With `look_first`, an image that is there already (an earlier attempt ended after its push) is taken as it is.
    Of a resumed attempt the first `said_before` characters of log are in the journal already.
    Raises BuildFailed, or another PrebinderError when the surroundings failed.
    """
    if look_first and (found := await images.launchable(order.image)):
        return found, f"Found built image {order.image}, launching..."
    stream = builder.build(order)
    async with aclosing(cast(Closeable, stream)):
        async for progress in stream:
            phase = Phase.UNKNOWN if progress.phase in _ONLY_OURS else progress.phase
            message = progress.message
            if phase is not Phase.WAITING and said_before:
                message, said_before = message[said_before:], max(0, said_before - len(message))
            if message:
                await journal.say(phase, message)
    launchable = await images.launchable(order.image)
    if launchable is None:
        raise BuildFailed(
            Failure(
                FailureKind.REGISTRY,
                f"The build ended well, but its image {order.image} is not in the image store. It is tried again.",
            )
        )
    return launchable, f"Built image {order.image}, launching..."
