"""A real Chromium and a small server for the site's browser tests.

The server serves the generated folder as any web server would, and plays `/build` from a script of the test: what the
real endpoint sends is tested beside it, in tests/launcher_site. Both live in one event loop for the whole folder.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from prebinder.model.catalogue import Catalogue
from prebinder_site.site.generator import SiteSettings, publish
from tests.launcher_site.site.catalogues import catalogue
from tests.support.browser import ARGUMENTS, absent
from tests.support.serving import serving

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

Send = Callable[..., Awaitable[None]]
Script = Callable[[Send], Awaitable[None]]


@dataclass
class Visited:
    """What a test asks of the server: scripts of `/build` by ref, and what was asked."""

    url: str
    folder: Path
    scripts: dict[str, Script] = field(default_factory=dict)
    builds: list[str] = field(default_factory=list)
    """Paths and queries of `/build` as they came, one a connection."""
    left: list[str] = field(default_factory=list)
    """The same of connections that the browser closed."""

    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def publish(self, content: Catalogue) -> None:
        publish(content, SiteSettings("Prebinder", self.url), self.folder)


async def _file(request: Request) -> Response:
    visited: Visited = request.app.state.visited
    root = visited.folder / "current"
    path = request.url.path.removeprefix("/")
    if path.startswith("v2/"):
        path = "launch.html"
    elif path == "" or path.endswith("/"):
        path += "index.html"
    found = (root / path).is_file()
    return FileResponse(
        root / (path if found else "404.html"),
        status_code=200 if found else 404,
        headers={"content-security-policy": POLICY, "cache-control": "no-cache"},
    )


async def _build(request: Request) -> Response:
    visited: Visited = request.app.state.visited
    raw = request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else "")
    visited.builds.append(raw)
    script = visited.scripts[raw.partition("?")[0].rsplit("/", 1)[1]]
    events: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=100)

    async def send(phase: str, message: str = "", **fields: Any) -> None:
        body = json.dumps({"phase": phase, "message": message + "\n", **fields})
        await events.put(f"data: {body}\n\n".encode())

    async def play() -> None:
        await script(send)
        await events.put(None)

    async def stream() -> AsyncIterator[bytes]:
        playing = asyncio.create_task(play())
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            playing.cancel()
            visited.left.append(raw)
            async with visited.changed:
                visited.changed.notify_all()

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _server(request: Request) -> Response:
    return HTMLResponse(f"<title>A server</title><p>{request.url.query or 'none'}")


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def chromium() -> AsyncIterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        absent("Chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="package")
async def visited(tmp_path: Path) -> AsyncIterator[Visited]:
    app = Starlette(
        routes=[
            Route("/build/{spec:path}", _build),
            Route("/user/{path:path}", _server),
            Route("/{path:path}", _file),
        ]
    )
    async with serving(app) as url:
        app.state.visited = Visited(url, tmp_path)
        app.state.visited.publish(catalogue())
        yield app.state.visited


@pytest_asyncio.fixture(loop_scope="package")
async def page(chromium: Browser, visited: Visited) -> AsyncIterator[Page]:
    """A page of its own. A script's error or a breach of the policy fails the test."""
    context = await chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    opened = await context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on(
        "console",
        lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield opened
    await context.close()
    assert errors == []
