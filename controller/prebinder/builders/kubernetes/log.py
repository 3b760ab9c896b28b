"""A build's log, from the bytes that the pod's containers write to what people read.

Guarantees:
- The same bytes give the same text, however they come in pieces: a controller that reads a log again from its first
  line knows what it has told already.
- Phases never go back; a line is at most 64 kB, without control characters (`builders/lines.py`).
- A log longer than the limit ends the build: what a repository writes is never kept without end.
"""

from __future__ import annotations

import collections

from pydantic import ValidationError

from prebinder.builders.base import BuildOrder, Progress
from prebinder.builders.child import ChildFailure, ChildLine
from prebinder.builders.lines import clean
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, Failure, FailureKind

_LINE_LIMIT = 8 * 2**20  # a JSON line; its message is at most 64 kB, escaped
_TAIL = 200
_ORDER = (Phase.FETCHING, Phase.BUILDING, Phase.PUSHING)
_PHASES = {phase.value: phase for phase in _ORDER}


class BuildLog:
    """The log of one build, over all containers of its pod."""

    def __init__(self, order: BuildOrder) -> None:
        self._limit = order.log_limit
        self._phase = Phase.FETCHING
        self._said = 0
        self._rest = b""
        self.failed: ChildFailure | None = None
        """The last word of a container that failed."""
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        """The last lines."""

    def feed(self, chunk: bytes) -> list[Progress]:
        """What comes out when these bytes come in. Raises BuildFailed when the log is too long."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            lines, self._rest = [*lines, self._rest], b""
        return self._told(lines)

    def end(self) -> list[Progress]:
        """The container ended: its last line, if no newline followed it."""
        lines, self._rest = ([self._rest] if self._rest else []), b""
        return self._told(lines)

    def _told(self, lines: list[bytes]) -> list[Progress]:
        told: list[Progress] = []
        together: list[str] = []
        for line in map(_parse, lines):
            if line.failed is not None:
                self.failed = line.failed
                continue
            new = _later(self._phase, _PHASES.get(line.phase or "", self._phase))
            if new is not self._phase:
                if together:
                    told.append(Progress(self._phase, "".join(together)))
                self._phase, together = new, []
            if not line.message.strip():
                continue
            text = clean(line.message).rstrip("\n") + "\n"
            self._said += len(text.encode())
            if self._said > self._limit:
                megabytes = self._limit / 1e6
                message = f"The build wrote more than {megabytes:.0f} MB of log."
                raise BuildFailed(Failure(FailureKind.LOG_FLOOD, message))
            together.append(text)
            self.tail.extend(text.splitlines())
        if together:
            told.append(Progress(self._phase, "".join(together)))
        return told


def _parse(line: bytes) -> ChildLine:
    try:
        return ChildLine.model_validate_json(line)
    except ValidationError:
        # Something that does not know of JSON wrote there (a warning of the interpreter, say).
        return ChildLine(message=line.decode("utf-8", "replace"))


def _later(now: Phase, new: Phase) -> Phase:
    return new if _ORDER.index(new) > _ORDER.index(now) else now
