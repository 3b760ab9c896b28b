"""The store of build logs: what a build says is kept as it comes, and any number of people follow it from line one.

Guarantees, each of them tested:
- An event is in its file before `append` returns; a process killed at any moment loses at most the event being
  written, and a torn last line is never read as an event nor glued to the next one.
- A disk that is full in the middle of a line leaves no half of it.
- A follower gets every event once, in order: the stored ones first, then the live ones, and ends after the terminal
  one. It is woken by `append`, never by a clock.
- Followers read the file at their own pace: a slow one costs neither memory nor anybody's time.
- A build's id never names a file outside the folder.

One JSON line an event, one file a build. Appends go straight to the page cache (microseconds), so they stay on the
event loop; reads of whole logs go to a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from prebinder.model.events import BuildEvent, Phase
from prebinder.model.failure import FailureKind

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CHUNK = 256 * 1024


@dataclass(slots=True)
class _Channel:
    """What this process knows of one log: the last number written, and who waits for the next event."""

    last: int
    deleted: bool = False
    followers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Wake everyone who waits now; whoever waits later waits for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()


class LogStore:
    """Build logs in one folder of one machine. One process writes; it is the one whose followers are woken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._channels: dict[str, _Channel] = {}
        self._lost: dict[str, BuildEvent] = {}
        folder.mkdir(parents=True, exist_ok=True)

    async def append(self, build_id: str, event: BuildEvent) -> None:
        """Store one event and wake the followers. Raises ValueError when its number is not the next one."""
        channel = self._channel(build_id)
        if event.seq != channel.last + 1:
            raise ValueError(f"event {event.seq} of build {build_id} follows {channel.last}")
        _append(self._path(build_id), event.model_dump_json(exclude_none=True).encode() + b"\n")
        channel.last = event.seq
        channel.wake()
        if event.terminal:
            self._forget(build_id, channel)

    def lose(self, build_id: str, at: datetime, failure: FailureKind, message: str) -> None:
        """A log that cannot be written on ends with these words, which are told and not stored."""
        channel = self._channel(build_id)
        self._lost[build_id] = BuildEvent(
            seq=channel.last + 1, at=at, phase=Phase.FAILED, message=message + "\n", failure=failure
        )
        channel.wake()
        self._forget(build_id, channel)

    async def read(self, build_id: str, after: int = 0) -> list[BuildEvent]:
        """The stored events with numbers above `after`; empty when there are none."""
        path = self._path(build_id)
        events, _ = await asyncio.to_thread(_read, path, 0, None)
        return [event for event in events if event.seq > after]

    async def last(self, build_id: str) -> BuildEvent | None:
        """The newest stored event."""
        events = await self.read(build_id)
        return events[-1] if events else None

    async def follow(
        self, build_id: str, after: int = 0, end: Callable[[], Awaitable[BuildEvent]] | None = None
    ) -> AsyncIterator[BuildEvent]:
        """The events above `after`: stored ones, then live ones, until the terminal one or until the log is deleted.

        A build that has said nothing yet is waited for. With `end` the build is over: a log that has no terminal event
        ends with that one, under the next number.
        """
        path = self._path(build_id)
        channel = self._channel(build_id)
        channel.followers += 1
        offset = 0
        try:
            while True:
                changed = channel.changed  # taken before reading, so that no event falls between reading and waiting
                events, offset = await asyncio.to_thread(_read, path, offset, _CHUNK)
                for event in events:
                    if event.seq > after:
                        yield event
                    if event.terminal:
                        return
                if channel.deleted:
                    return
                if not events and (lost := self._lost.get(build_id) or (end and await end())):
                    yield lost.model_copy(update={"seq": max(channel.last, after) + 1})
                    return
                if not events:
                    await changed.wait()
        finally:
            channel.followers -= 1
            self._forget(build_id, channel)

    async def delete(self, build_id: str) -> bool:
        """Delete a log; followers end. False when there was none."""
        path = self._path(build_id)
        if channel := self._channels.pop(build_id, None):
            channel.deleted = True
            channel.wake()
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    async def recover(self, build_id: str) -> BuildEvent | None:
        """After a crash: cut off a torn last line. Returns the last whole event, from which the log goes on."""
        self._lost.pop(build_id, None)
        event = await asyncio.to_thread(_recover, self._path(build_id))
        if channel := self._channels.get(build_id):
            channel.last = event.seq if event else 0
        return event

    def _path(self, build_id: str) -> Path:
        if not _ID.fullmatch(build_id):
            raise ValueError(f"not the id of a build: {build_id[:80]!r}")
        return self._folder / f"{build_id}.jsonl"

    def _channel(self, build_id: str) -> _Channel:
        channel = self._channels.get(build_id)
        if channel is None:
            last = _recover(self._path(build_id))
            channel = self._channels[build_id] = _Channel(last.seq if last else 0)
        return channel

    def _forget(self, build_id: str, channel: _Channel) -> None:
        """Drop what is kept in memory once nobody follows; the next use reads it from the file."""
        if not channel.followers and self._channels.get(build_id) is channel:
            del self._channels[build_id]


def _append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as log:
        before = log.tell()
        if log.write(line) != len(line):  # the disk became full in its middle
            log.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _read(path: Path, offset: int, most: int | None) -> tuple[list[BuildEvent], int]:
    """Whole events from `offset`, about `most` bytes of them, and the offset of what follows."""
    events: list[BuildEvent] = []
    try:
        with path.open("rb") as log:
            log.seek(offset)
            start = offset
            while line := log.readline():
                if not line.endswith(b"\n") or (event := _parse(line)) is None:
                    break
                events.append(event)
                offset += len(line)
                if most is not None and offset - start >= most:
                    break
    except FileNotFoundError:
        pass
    return events, offset


def _recover(path: Path) -> BuildEvent | None:
    """The last whole event; whatever stands after it is cut off."""
    try:
        with path.open("rb") as log:
            last, end = None, 0
            for line in log:
                if not line.endswith(b"\n") or (event := _parse(line)) is None:
                    break
                last, end = event, end + len(line)
            size = os.fstat(log.fileno()).st_size
    except FileNotFoundError:
        return None
    if end < size:
        os.truncate(path, end)
    return last


def _parse(line: bytes) -> BuildEvent | None:
    try:
        return BuildEvent.model_validate_json(line)
    except ValidationError:
        return None
