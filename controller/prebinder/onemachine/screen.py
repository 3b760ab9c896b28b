"""What `prebinder up` shows: steps while it starts, then one line for each thing that happens.

In a terminal a step spins until it is done; piped, each step is one line. Nothing here decides anything, and a terminal
that is gone ends nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from prebinder.model.catalogue import Catalogue
from prebinder.model.events import BuildState
from prebinder.onemachine.unbreakable import Unbreakable


class Screen:
    """Start-up steps, side by side when they run side by side."""

    def __init__(self) -> None:
        self.console = Console(file=cast(TextIO, Unbreakable(sys.stdout)), highlight=False, soft_wrap=True)
        self._progress: Progress | None = None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While this is open, `step` lines are live."""
        if not self.console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self.console, transient=True)
        try:
            with self._progress:
                yield
        finally:
            self._progress = None

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """One step. The value shows what it is doing now; the last text stays beside the step when it is done."""
        started = time.monotonic()
        detail = ""
        task = self._progress.add_task(name, total=None) if self._progress else None

        def say(text: str) -> None:
            nonlocal detail
            detail = text
            if self._progress and task is not None:
                self._progress.update(task, description=f"{name}: {text}")
            else:
                self.console.print(Text(f"  {name}: {text}"))

        try:
            yield say
        except BaseException:
            if self._progress and task is not None:
                self._progress.remove_task(task)
            raise
        if self._progress and task is not None:
            self._progress.remove_task(task)
        seconds = time.monotonic() - started
        self.console.print(Text.assemble(("  ✓ ", "green"), f"{name}", (f"  {detail}  {seconds:.1f} s", "dim")))

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))


class BuildTicker:
    """One line for each build that starts or ends, from one catalogue to the next."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._known: dict[str, BuildState] | None = None

    def show(self, catalogue: Catalogue) -> None:
        now = {build.id: build.state for build in catalogue.recent_builds}
        before, self._known = self._known, now
        if before is None:
            return
        for build in reversed(catalogue.recent_builds):
            if before.get(build.id) is build.state:
                continue
            what = f"{_short(build.repository)} {build.ref} {build.revision[:7]}"
            match build.state:
                case BuildState.RUNNING:
                    self._screen.line(f"  building  {what}", "cyan")
                case BuildState.READY:
                    took = f" in {build.seconds:.0f} s" if build.seconds is not None else ""
                    self._screen.line(f"  ready     {what}{took}", "green")
                case BuildState.FAILED:
                    why = build.failure.heading if build.failure else "failed"
                    self._screen.line(f"  failed    {what}: {why} (prebinder logs {build.id[:12]})", "red")
                case _:
                    pass


def _short(repository: str) -> str:
    return repository.replace("%2F", "/").replace("%3A", ":").rstrip("/").rpartition("/")[2].removesuffix(".git")
