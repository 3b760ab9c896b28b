"""A controller in a process of its own, for test_killed.py to kill: `python -m … FOLDER GIT_URL`.

Its builder says on standard output when it begins, and never ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from prebinder.builders.base import BuildOrder, Progress
from prebinder.hosts.git import GitHost
from prebinder.model.events import Phase
from prebinder.model.spec import Provider
from tests.support.controller import started
from tests.support.scripted_builder import ScriptedBuilder, Shelf


class EndlessBuilder(ScriptedBuilder):
    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        yield Progress(Phase.FETCHING, "Cloning.\n")
        print(f"building {order.revision}", flush=True)
        while True:
            yield Progress(Phase.BUILDING, "One more line of log.\n")
            await asyncio.sleep(0.001)


async def main(folder: Path, url: str) -> None:
    hosts = {Provider.GIT: GitHost(folder / "cache")}
    async with started(folder, [{"git": url}], hosts, builder=EndlessBuilder(Shelf())):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
