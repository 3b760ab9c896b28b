"""How the command line speaks: live and coloured in a terminal, plain lines when piped, JSON on request.

Texts from builds are untrusted: control characters never reach the terminal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from prebinder.model.events import BuildEvent, BuildRecord, BuildState, Phase

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLES = {
    BuildState.QUEUED: "yellow",
    BuildState.RUNNING: "cyan",
    BuildState.READY: "green",
    BuildState.FAILED: "red",
    BuildState.CANCELLED: "dim",
}


def clean(text: str) -> str:
    """Untrusted text without escape sequences and control characters other than tab and newline."""
    return _ESCAPES.sub("", text)


def fail(message: str) -> None:
    """An error for a person: to standard error, without markup."""
    err.print(Text(f"prebinder: {clean(message)}", style="red" if err.is_terminal else ""))


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """`3 min ago`, for tables."""
    if moment is None:
        return "never"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 0:
        return f"in {_span(-seconds)}"
    return "now" if seconds < 1 else f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def builds_table(builds: Sequence[BuildRecord], title: str) -> Table:
    """Builds as a table for a terminal."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("BUILD", "REPOSITORY", "REF", "REVISION", "STATE", "SINCE"):
        table.add_column(column, overflow="fold")
    for build in builds:
        since = build.finished_at or build.started_at or build.queued_at
        state = build.state.value + (f" ({build.failure})" if build.failure and build.state.finished else "")
        table.add_row(
            build.id[:12],
            clean(build.repository),
            clean(build.ref),
            build.revision[:10],
            Text(state, style=_STYLES[build.state]),
            ago(since),
        )
    return table


def builds_plain(builds: Sequence[BuildRecord]) -> str:
    """The same for a pipe: one build a line, tab-separated, no header."""
    return "".join("\t".join((b.id, b.repository, b.ref, b.revision, b.state, b.failure or "")) + "\n" for b in builds)


class BuildView:
    """Shows the events of a build: log lines as they come, and below them (in a terminal) the phase and the time."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = datetime.now(UTC)
        self._phase: Phase | None = None
        self._live = Live(console=err, transient=True, refresh_per_second=8) if err.is_terminal else None

    def __enter__(self) -> BuildView:
        if self._live:
            self._live.start()
            self._tick(Phase.WAITING)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, event: BuildEvent) -> None:
        self.line(event.phase, event.message)

    def line(self, phase: Phase, message: str) -> None:
        """One event: its text to standard output, its phase to the status line (or a heading when piped)."""
        text = clean(message)
        self.phase(phase)
        if self._live:
            self._live.console.print(Text(text.rstrip("\n")))
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def phase(self, phase: Phase) -> None:
        """Show a phase when it is another than the last."""
        if phase is Phase.UNKNOWN or phase is self._phase:
            return
        self._phase = phase
        if self._live:
            self._tick(phase)
        else:
            err.print(Text(f"[{phase.value}]"))

    def _tick(self, phase: Phase) -> None:
        assert self._live
        seconds = (datetime.now(UTC) - self._started).total_seconds()
        self._live.update(Spinner("dots", Text(f"{self._title}: {phase.value} ({seconds:.0f} s)", style="bold")))
