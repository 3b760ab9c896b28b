"""The order of waiting builds. No I/O, no clock: times come in.

Guarantees, property-tested:
- A build of a better priority is always taken before one of a worse.
- At equal priority repositories take turns, so that one big push does not make the others wait; within a repository
  first come, first served.
- A build whose pause has not passed is not taken, and does not hold up others.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from prebinder.model.events import Priority


@dataclass(frozen=True, slots=True)
class Waiting:
    """One waiting build."""

    id: str
    repository: str
    priority: Priority
    not_before: datetime | None = None


class BuildQueue:
    """Waiting builds, by id."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._arrivals: dict[str, int] = {}
        self._arrived = 0
        self._turns: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, build_id: str) -> bool:
        return build_id in self._waiting

    def add(self, item: Waiting) -> None:
        """Put a build at the end of its repository's line."""
        if item.id in self._waiting:
            raise ValueError(f"build {item.id} waits already")
        self._arrived += 1
        self._waiting[item.id] = item
        self._arrivals[item.id] = self._arrived

    def remove(self, build_id: str) -> bool:
        """Take a build out; False when it does not wait."""
        self._arrivals.pop(build_id, None)
        return self._waiting.pop(build_id, None) is not None

    def raise_priority(self, build_id: str, priority: Priority) -> None:
        """Give a waiting build a better priority; never a worse one. Whoever waits in person waits for no pause."""
        item = self._waiting.get(build_id)
        if item is not None and priority.rank < item.priority.rank:
            pause = None if priority is Priority.PERSON else item.not_before
            self._waiting[build_id] = replace(item, priority=priority, not_before=pause)

    def take(self, now: datetime, full: Collection[str] = ()) -> str | None:
        """Remove and return the build to run next; None when none may run now. Of the repositories in `full` enough
        builds run already."""
        order = [build_id for build_id in self.order(now) if self._waiting[build_id].repository not in full]
        if not order:
            return None
        item = self._waiting[order[0]]
        self._turn += 1
        self._turns[item.repository] = self._turn
        self.remove(item.id)
        if not any(w.repository == item.repository for w in self._waiting.values()) and len(self._turns) > 10_000:
            self._turns.pop(item.repository)
        return item.id

    def order(self, now: datetime) -> list[str]:
        """Those that may run now, best first, as if each repository had its next turn now."""
        may = [w for w in self._waiting.values() if w.not_before is None or w.not_before <= now]
        # A repository's later builds stand behind one more turn each.
        behind: dict[tuple[Priority, str], int] = {}
        keys: dict[str, tuple[int, int, int, int]] = {}
        for item in sorted(may, key=lambda w: self._arrivals[w.id]):
            line = (item.priority, item.repository)
            behind[line] = behind.get(line, -1) + 1
            turn = self._turns.get(item.repository, 0)
            keys[item.id] = (item.priority.rank, behind[line], turn, self._arrivals[item.id])
        return sorted(keys, key=keys.__getitem__)

    def next_at(self, now: datetime) -> datetime | None:
        """When the next pause ends; None when no build pauses."""
        return min((w.not_before for w in self._waiting.values() if w.not_before and w.not_before > now), default=None)
