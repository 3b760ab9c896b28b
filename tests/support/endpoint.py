"""A launch endpoint on a free port, with all that a click meets around it under the test's control."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from pydantic import SecretStr
from yarl import URL

from prebinder.hosts.base import Host
from prebinder.model.catalogue import (
    Catalogue,
    ImageState,
    RefEntry,
    RefKind,
    RepositoryEntry,
    RevisionEntry,
)
from prebinder.model.failure import HostUnavailable, PrebinderError, RegistryError
from prebinder.model.images import ImageName, image_name
from prebinder.model.spec import Provider, Repository, Spec, github
from prebinder_site.app import create_app
from prebinder_site.settings import EndpointSettings
from tests.support.serving import serving
from tests.support.standin_controller import StandinController
from tests.support.standin_hub import TOKEN, StandinHub

PREFIX = "registry.test/binder/"
READY, ABSENT, NEWER = "1" * 40, "2" * 40, "3" * 40
COURSE = github("Ada/Course")


def name_of(revision: str, repository: Repository = COURSE) -> ImageName:
    return image_name(PREFIX, repository, revision)


def catalogue(version: str = "1", **changes: Any) -> Catalogue:
    """One registered repository: branch `trunk` (default) is ready, branch `next` has no image, tag `v1` is ready."""
    now = datetime.now(UTC)
    entry: dict[str, Any] = {
        "repository": str(COURSE),
        "provider": "gh",
        "name": COURSE.name,
        "title": "Course",
        "url": "https://github.test/Ada/Course",
        "default_branch": "trunk",
        "looked_at": now,
        "refs": (
            RefEntry(name="trunk", kind=RefKind.BRANCH, revision=READY),
            RefEntry(name="next", kind=RefKind.BRANCH, revision=ABSENT),
            RefEntry(name="v1", kind=RefKind.TAG, revision=READY),
        ),
        "revisions": (
            RevisionEntry(revision=READY, state=ImageState.READY, since=now, image=f"{PREFIX}course@sha256:ready"),
            RevisionEntry(revision=ABSENT, state=ImageState.ABSENT, since=now),
        ),
    }
    return Catalogue(
        version=version,
        published_at=now,
        on_demand="registered",
        image_prefix=PREFIX,
        repositories=(RepositoryEntry(**{**entry, **changes}),),
    )


@dataclass
class Shelf:
    """An image store that holds what the test puts there. The real ones are tested in tests/controller/registry."""

    pushes: bool = True
    images: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    down: bool = False

    async def launchable(self, image: ImageName) -> str | None:
        self.asked.append(str(image))
        await self.health()
        return self.images.get(str(image))

    async def digest(self, image: ImageName) -> str | None:
        return "sha256:0" if await self.launchable(image) else None

    async def delete(self, image: ImageName) -> bool:
        return self.images.pop(str(image), None) is not None

    async def health(self) -> None:
        if self.down:
            raise RegistryError("The registry does not answer.")

    async def aclose(self) -> None:
        return None


@dataclass
class ScriptedHost:
    """A Git host that answers as the test says. The real ones are tested in tests/controller/hosts."""

    answers: dict[str, str | PrebinderError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def resolve(self, spec: Spec) -> str:
        self.asked.append(str(spec))
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.get(spec.ref, HostUnavailable("The Git host does not answer."))
        if isinstance(answer, PrebinderError):
            raise answer
        return answer

    def clone_url(self, repository: Repository) -> str:
        return f"https://github.test/{repository.name}"

    def web_url(self, repository: Repository, revision: str | None = None) -> str:
        return f"https://github.test/{repository.name}/tree/{revision}"


@dataclass
class World:
    """The endpoint's surroundings. `url` ends in a slash."""

    url: str
    hub: StandinHub
    controller: StandinController
    images: Shelf
    host: ScriptedHost
    settings: EndpointSettings
    app: Any
    session: aiohttp.ClientSession
    controller_port: int

    async def click(self, spec: str, query: str = "") -> list[dict[str, Any]]:
        """The events of a click, until `ready` or `failed`."""
        return [event async for event in self.events(spec, query)]

    async def events(self, spec: str, query: str = "") -> AsyncIterator[dict[str, Any]]:
        url = URL(f"{self.url}build/{spec}{query}", encoded=True)
        async with self.session.get(url) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.content:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    yield event
                    if event["phase"] in ("ready", "failed"):
                        return

    async def until(self, condition: Any, seconds: float = 10) -> None:
        """Wait for a condition on the surroundings."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def world(
    folder: Path,
    *,
    known: Catalogue | None = None,
    controller_up: bool = True,
    hub_up: bool = True,
    copy: bool = True,
    **settings: Any,
) -> AsyncIterator[World]:
    """Everything up (unless told otherwise), the endpoint having the catalogue (`copy`)."""
    start = known or catalogue()
    hub, controller, images, host = StandinHub(), StandinController(start), Shelf(), ScriptedHost()
    hosts: dict[Provider, Host] = {Provider.GITHUB: host}  # type: ignore[dict-item]
    state = folder / "state"
    state.mkdir()
    if copy:
        (state / "catalogue.json").write_text(start.model_dump_json())
    async with contextlib.AsyncExitStack() as stack:
        hub_url = await stack.enter_async_context(serving(hub.app())) if hub_up else "http://127.0.0.1:9/"
        controller_url = "http://127.0.0.1:9/"
        if controller_up:
            controller_url = await stack.enter_async_context(serving(controller.app()))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=controller_url))
        chosen = EndpointSettings(
            public_url="https://binder.test/",
            site_folder=folder / "site",
            state_folder=state,
            hub_api_url=f"{hub_url}hub/api/",
            hub_public_url="https://hub.test/",
            hub_token=SecretStr(TOKEN),
            image_prefix=PREFIX,
            version="0.1",
            hold_open=0.2,
        )
        chosen = dataclasses.replace(chosen, **settings)
        app = create_app(chosen, controller=client, images=images, hosts=hosts)
        url = await stack.enter_async_context(serving(app))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=60),
                read_bufsize=2**22,
                auto_decompress=False,
            )
        )
        port = httpx.URL(controller_url).port or 9
        yield World(url, hub, controller, images, host, chosen, app, session, port)
