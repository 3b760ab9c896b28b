"""A controller that builds on Kubernetes, in a process of its own, for kubernetes.py to measure and to kill.

    python -m benchmarks.kubernetes_controller FOLDER NAMESPACE IMAGE PARALLEL BRANCHES

Git host and registry are in memory, pods run a script; ledger, logs, queue, builder and cluster are real. It takes
commands on standard input, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from prebinder.builders.base import BuildOrder, Progress
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.builders.kubernetes.names import job_name
from prebinder.builders.logs import LogStore
from prebinder.config import LiveConfiguration
from prebinder.config.models import Configuration
from prebinder.hosts.base import Host
from prebinder.ledger import Ledger
from prebinder.model.catalogue import RefKind
from prebinder.model.events import Phase
from prebinder.model.images import ImageName, image_name
from prebinder.model.spec import Provider, Repository, git_url
from prebinder.reconcile import Controller
from tests.support.memory_host import MemoryHost
from tests.support.pod_scripts import DIGEST, clone_url
from tests.support.scripted_builder import Shelf

COURSE = git_url("https://memory.invalid/course")
SCRIPT = f"case $ROLE in build) log building Building; sleep 1800;; push) pushed {DIGEST};; esac"


class ScriptHost(MemoryHost):
    def clone_url(self, repository: Repository) -> str:
        return clone_url(SCRIPT)


class FollowedBuilder(KubernetesBuilder):
    """Knows of which builds it has heard a line."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.heard: set[str] = set()
        self.hears = asyncio.Condition()

    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        async for progress in super().build(order):
            if progress.phase is not Phase.WAITING:
                async with self.hears:
                    self.heard.add(order.revision)
                    self.hears.notify_all()
            yield progress


async def main(began: float, folder: Path, namespace: str, image: str, parallel: int, branches: int) -> None:
    kubernetes = {"namespace": namespace, "image": image, "cpu_request": 0.01, "memory_request": "8MB"}
    tree = {
        "builder": {"kind": "kubernetes", "kubernetes": {**kubernetes, "layer_cache": False}},
        "registry": {"prefix": "registry.invalid/bench-"},
        "repositories": [{"git": COURSE.name, "branches": ["*"], "build": "newest"}],
        "polling": {"interval": 86400, "jitter": 0},
        "limits": {"parallel": parallel, "memory": "32MB", "time": 3600},
        "hosts": {"git": {"webhook_secret": {"env": "PATH"}}},
    }
    live = LiveConfiguration(Configuration.model_validate(tree))
    host, shelf = ScriptHost(), Shelf()
    for n in range(branches):
        host.push(COURSE, f"Commit on {n}", branch=f"branch-{n}")
    hosts: dict[Provider, Host] = {Provider.GIT: host}

    async def shown(image: ImageName) -> str:
        return DIGEST

    builder = FollowedBuilder(lambda: live.current, shown)
    ledger = await Ledger.open(folder / "ledger.sqlite")
    controller = Controller(live, ledger, hosts, builder, shelf, LogStore(folder / "builds"))
    started = time.monotonic()
    await controller.start()

    async def following(count: int) -> dict[str, float]:
        async with builder.hears:
            await builder.hears.wait_for(lambda: len(builder.heard) >= count)
        now = time.monotonic()
        return {"since_start": now - started, "since_process": time.time() - began}

    async def push(name: str) -> dict[str, float]:
        """A webhook, until the API server has the Job."""
        revision = host.push(COURSE, name, branch=name)
        view = next(iter(controller._views.values()))
        view.refs.setdefault((RefKind.BRANCH, name), next(iter(view.refs.values())))
        body = json.dumps({"name": COURSE.name, "ref": name, "revision": revision, "delivery": name}).encode()
        job = job_name("prebinder", image_name("registry.invalid/bench-", COURSE, revision))
        before = time.monotonic()
        await controller.webhook("git", {"x-signed": "yes"}, body)
        accepted = time.monotonic()
        assert builder._watch is not None
        while (seen := builder._watch.seen(job)).job is None:
            await builder._watch.changed(job, seen.turn)
        return {"accepted": accepted - before, "job": time.monotonic() - accepted}

    async def numbers() -> dict[str, float]:
        assert builder._api is not None
        assert builder._watch is not None
        process = psutil.Process()
        return {
            "calls": builder._api.calls,
            "pss": process.memory_full_info().pss / 1e6,
            "jobs": len(builder._watch._places),
        }

    print(json.dumps({"ready": True}), flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        match line[0]:
            case "following":
                answer: dict[str, float] = await following(int(line[1]))
            case "push":
                answer = await push(line[1])
            case "numbers":
                answer = await numbers()
            case _:
                break
        print(json.dumps(answer), flush=True)
    builder.detach()
    await controller.stop()
    await builder.aclose()
    await ledger.aclose()


if __name__ == "__main__":
    process_began = psutil.Process().create_time()
    asyncio.run(main(process_began, Path(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:6])))
