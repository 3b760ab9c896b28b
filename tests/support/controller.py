"""A whole controller for tests: real ledger, logs, queue and rounds, real Git over HTTP; a scripted builder.

async with started(folder, [{"git": course.url}], hosts=hosts) as it:
    await until(lambda: it.builder.revisions == [course.head()])
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebinder.builders.logs import LogStore
from prebinder.config import Configuration, LiveConfiguration
from prebinder.hosts.base import Host
from prebinder.ledger import Ledger
from prebinder.model.catalogue import Catalogue, RepositoryEntry, RevisionEntry
from prebinder.model.events import BuildEvent, BuildRecord
from prebinder.model.images import ImageName, image_name
from prebinder.model.spec import Provider, Repository
from prebinder.reconcile import Controller
from tests.support.scripted_builder import ScriptedBuilder, Shelf

PREFIX = "registry.example.org/binder/"
QUICK: dict[str, Any] = {
    "registry": {"prefix": PREFIX},
    "limits": {"backoff": 0.02, "backoff_max": 0.1},
    "polling": {"interval": 3600, "jitter": 0},
}
"""Short pauses after failures; no look at a Git host but the first, unless a webhook asks."""


async def until(condition: Callable[[], Any], *, within: float = 20.0) -> Any:
    """Wait for a condition; its value. Fails with what it was about when the time is over."""
    end = asyncio.get_running_loop().time() + within
    while not (value := condition()):
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not within {within:g} s: {condition.__name__} at {condition.__code__}")
        await asyncio.sleep(0.005)
    return value


def configured(repositories: Sequence[Mapping[str, Any]], **sections: Any) -> Configuration:
    """A configuration like `QUICK`, with sections merged into it."""
    tree: dict[str, Any] = {**QUICK, "repositories": list(repositories)}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return Configuration.model_validate(tree)


@dataclass
class Running:
    """A started controller and its parts."""

    controller: Controller
    live: LiveConfiguration
    ledger: Ledger
    logs: LogStore
    builder: ScriptedBuilder
    images: Shelf

    @property
    def catalogue(self) -> Catalogue:
        return self.controller.catalogue()

    def entry(self, repository: Repository | None = None) -> RepositoryEntry:
        entry = self.catalogue.find(repository) if repository else self.catalogue.repositories[0]
        assert entry is not None
        return entry

    def state(self, revision: str) -> RevisionEntry | None:
        return next((e for r in self.catalogue.repositories if (e := r.entry(revision))), None)

    def is_state(self, revision: str, state: str) -> bool:
        entry = self.state(revision)
        return entry is not None and entry.state == state

    def image(self, repository: Repository, revision: str) -> ImageName:
        return image_name(self.live.current.registry.image_prefix, repository, revision)

    async def events(self, build: str) -> list[BuildEvent]:
        """All events of a build, to the terminal one."""
        async with asyncio.timeout(20):
            return [event async for event in await self.controller.events(build)]

    async def ended(self, build: str) -> BuildRecord:
        """The build, once it has ended."""
        await self.events(build)
        end = asyncio.get_running_loop().time() + 20
        while not (record := await self.controller.build(build)).state.finished:
            assert asyncio.get_running_loop().time() < end, f"build {build} does not end"
            await asyncio.sleep(0.005)
        return record


@asynccontextmanager
async def started(
    folder: Path,
    configuration: Configuration | Sequence[Mapping[str, Any]],
    hosts: Mapping[Provider, Host],
    *,
    images: Shelf | None = None,
    builder: ScriptedBuilder | None = None,
    kill: bool = False,
) -> AsyncIterator[Running]:
    """A controller on the ledger and logs in `folder`. With `kill` it is not stopped but torn away in the end."""
    if not isinstance(configuration, Configuration):
        configuration = configured(configuration)
    images = images or (builder.images if builder else Shelf())
    builder = builder or ScriptedBuilder(images)
    live = LiveConfiguration(configuration)
    ledger = await Ledger.open(folder / "ledger.sqlite")
    logs = LogStore(folder / "builds")
    before = asyncio.all_tasks()
    try:
        controller = Controller(live, ledger, hosts, builder, images, logs)
        await controller.start()
        try:
            yield Running(controller, live, ledger, logs, builder, images)
        finally:
            if kill:
                await _tear_away(controller, before)
            else:
                await controller.stop()
    finally:
        await ledger.aclose()


async def _tear_away(controller: Controller, before: set[asyncio.Task[Any]]) -> None:
    """As near to SIGKILL as one process allows: nothing that the controller would still write is written.

    (test_killed.py kills a real process.)
    """
    ours = asyncio.all_tasks() - before - {asyncio.current_task()}
    controller._schedule._scheduler.pause()
    for task in ours:
        task.cancel()
    await asyncio.gather(*ours, return_exceptions=True)
