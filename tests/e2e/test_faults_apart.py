"""Controller and launch endpoint as processes of their own, with a real registry and a real JupyterHub, each killed in
turn in the middle of its work: what is ready keeps opening, what was begun is finished, and links stay the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.support.command import PREBINDER, environment
from tests.support.git_server import GitRepository, GitServer
from tests.support.hub import real_hub
from tests.support.registry import Registry, running_registry
from tests.support.stack import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.hub, pytest.mark.timeout(400)]

Event = dict[str, Any]
DOCKERFILE = "FROM scratch\nCOPY README.md /\n"


@dataclass
class Part:
    """`prebinder controller` or `prebinder serve`, which can be killed and started again."""

    words: tuple[str, ...]
    url: str
    folder: Path
    secrets: dict[str, str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self.folder / f"{self.words[0]}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(PREBINDER),
                *self.words,
                cwd=self.folder,
                env=environment(self.folder, self.secrets),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(self.answers, 90)

    async def answers(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log
        return await self.health() is not None

    async def health(self) -> tuple[int, dict[str, bool]] | None:
        try:
            async with httpx.AsyncClient(timeout=15) as client:
                answer = await client.get(f"{self.url}health")
        except httpx.TransportError:
            return None
        return answer.status_code, {check["service"]: check["ok"] for check in answer.json()["checks"]}

    async def well(self, service: str) -> bool:
        health = await self.health()
        return health is not None and health[1][service]

    @property
    def log(self) -> str:
        return (self.folder / f"{self.words[0]}.log").read_text()

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        async with asyncio.timeout(60):
            return await process.wait()

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)


@dataclass
class Apart:
    controller: Part
    endpoint: Part
    course: GitRepository
    registry: Registry
    folder: Path
    ledger: Path = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = self.folder / "c" / "ledger.sqlite"

    async def click(self, ref: str) -> AsyncGenerator[Event]:
        spec = f"git/{quote(self.course.url, safe='')}/{ref}"
        async with (
            httpx.AsyncClient(timeout=120) as client,
            client.stream("GET", f"{self.endpoint.url}build/{spec}") as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    async def last(self, ref: str) -> Event:
        async with aclosing(self.click(ref)) as events:
            async for event in events:
                if event["phase"] in ("ready", "failed"):
                    return event
        raise AssertionError("the stream ended without an end")

    async def opens(self, ref: str) -> bool:
        return (await self.last(ref))["phase"] == "ready"

    @property
    def registry_process(self) -> psutil.Process:
        mark = str(self.folder / "registry")
        return next(
            p for p in psutil.Process().children() if "docker-registry" in p.name() and mark in " ".join(p.cmdline())
        )


async def until(condition: Any, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def whole(ledger: Path) -> bool:
    with sqlite3.connect(ledger) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@asynccontextmanager
async def apart(folder: Path, git_server: GitServer) -> AsyncIterator[Apart]:
    course = git_server.create("course", {"README.md": "hello", "Dockerfile": DOCKERFILE})
    async with AsyncExitStack() as parts:
        registry = parts.enter_context(running_registry(folder / "registry"))
        prefix = f"{registry.host}/binder/"
        hub = await parts.enter_async_context(real_hub(folder / "hub", prefix=prefix))
        controller_port, site_port = free_port(), free_port()
        file = folder / "prebinder.yaml"
        file.write_text(
            json.dumps(
                {
                    "repositories": [{"git": course.url}],
                    "limits": {"backoff": 1},
                    "registry": {"prefix": prefix, "insecure": True, "timeout": 2},
                    "hub": {
                        "url": hub.api_url.removesuffix("/hub/api/"),
                        "public_url": hub.public_url,
                        "token": {"env": "HUB_TOKEN"},
                    },
                    "controller": {"port": controller_port, "token": {"env": "CONTROLLER_TOKEN"}},
                    "site": {"port": site_port},
                }
            )
        )
        secrets = {"HUB_TOKEN": hub.token.get_secret_value(), "CONTROLLER_TOKEN": "between-the-two"}
        controller, endpoint = (
            Part((name, "--config", str(file), "--state", str(folder / state)), url, folder, secrets)
            for name, state, url in (
                ("controller", "c", f"http://127.0.0.1:{controller_port}/"),
                ("serve", "e", f"http://127.0.0.1:{site_port}/"),
            )
        )
        it = Apart(controller, endpoint, course, registry, folder)
        try:
            await controller.start()
            await endpoint.start()
            yield it
        finally:
            for part in (endpoint, controller):
                if part.process is None:
                    # Killed in mid-test: the next start clears away what it left.
                    await part.start()
                assert await part.end(signal.SIGTERM) == 0
            assert "Traceback" not in controller.log + endpoint.log


async def test_each_half_is_killed_in_turn_and_links_keep_working(tmp_path: Path, git_server: GitServer) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    async with apart(tmp_path, git_server) as it:
        assert await it.opens("HEAD"), "a first click builds it or finds it built"
        await memory_is_modest(it)

        # The controller, in mid-build, while somebody watches.
        side = it.course.push({"README.md": "side"}, branch="side")
        events: list[Event] = []
        killed = False
        async with aclosing(it.click("side")) as stream:
            async for event in stream:
                events.append(event)
                if event["phase"] == "fetching" and not killed:
                    killed = True
                    await it.controller.kill()
                    await while_the_controller_is_away(it)
                    await it.controller.start()
                if event["phase"] in ("ready", "failed"):
                    break
        said = "".join(event["message"] for event in events)
        assert events[-1]["phase"] == "ready", said
        assert "The controller went away; the build goes on when it is back." in said
        assert "The controller stopped in mid-build." in said
        assert f":{side}" in events[-1]["image"] or "@sha256:" in events[-1]["image"]
        assert whole(it.ledger)

        # The endpoint, in mid-click.
        with pytest.raises(httpx.TransportError):
            await kill_in_mid_click(it)
        await it.endpoint.start()
        assert await it.opens("side")

        # The endpoint starts, and opens what is ready, while there is no controller.
        await it.endpoint.kill()
        await it.controller.kill()
        await it.endpoint.start()
        assert await it.opens("side")
        await it.controller.start()
        await until(lambda: it.endpoint.well("controller"))
        await a_registry_that_hangs_is_named(it)


async def kill_in_mid_click(it: Apart) -> None:
    async with aclosing(it.click("side")) as events:
        async for event in events:
            if event["phase"] == "launching" and it.endpoint.process is not None:
                await it.endpoint.kill()


async def memory_is_modest(it: Apart) -> None:
    """Two interpreters with their libraries cost more than one process with both (which has to keep to 150 MB)."""
    used = {}
    for part in (it.controller, it.endpoint):
        assert part.process is not None
        used[part.words[0]] = psutil.Process(part.process.pid).memory_full_info().pss / 1e6
    print({name: f"{size:.0f} MB" for name, size in used.items()})
    assert sum(used.values()) <= 180, used


async def while_the_controller_is_away(it: Apart) -> None:
    assert whole(it.ledger)
    assert await it.opens("HEAD"), "a ready image needs no controller"
    await until(lambda: away(it.endpoint, "controller"))
    health = await it.endpoint.health()
    assert health is not None
    assert health[0] == 200, "what is ready can be launched"
    event = await it.last("other")
    assert event["phase"] == "failed"
    assert event["status_code"] in (404, 503)


async def away(part: Part, service: str) -> bool:
    return not await part.well(service)


async def a_registry_that_hangs_is_named(it: Apart) -> None:
    registry = it.registry_process
    registry.suspend()
    try:
        await until(lambda: away(it.controller, "registry"))
        await until(lambda: away(it.endpoint, "image store"))
        assert await it.opens("HEAD"), "the catalogue knows this image: the registry is not asked"
        it.course.push({"README.md": "unbuilt"}, branch="unbuilt")
        event = await it.last("unbuilt")
        assert (event["phase"], event["failure"], event["status_code"]) == ("failed", "registry", 503)
    finally:
        registry.resume()
    await until(lambda: it.controller.well("registry"))
    await until(lambda: it.endpoint.well("image store"))
    assert await it.opens("unbuilt")
