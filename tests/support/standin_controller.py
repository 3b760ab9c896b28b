"""A stand-in for the controller that speaks docs/controller-api.md, for tests of the launch endpoint alone.

The test writes the events of a build by hand and can stop and start the controller in the middle of one. The real
controller and endpoint meet in tests/e2e.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from prebinder.model.catalogue import Catalogue
from prebinder.model.events import BuildEvent, BuildRecord, BuildState, Phase, Priority
from prebinder.model.failure import FailureKind
from prebinder.model.messages import BuildReply, Problem

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@dataclass
class StandinController:
    catalogue: Catalogue
    reply: BuildReply | Problem | None = None
    """The answer to every request for a build."""
    status: int = 403
    """With a Problem: the status."""
    builds: dict[str, list[BuildEvent]] = field(default_factory=dict)
    log: bytes = b"<script>alert(1)</script>\n"
    requests: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    launches: list[Any] = field(default_factory=list)
    streams: int = 0
    """Build streams that were opened."""
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/catalogue", self._catalogue),
                Route("/api/catalogue/events", self._catalogue_events),
                Route("/api/builds", self._request_build, methods=["POST"]),
                Route("/api/builds/{id}", self._record),
                Route("/api/builds/{id}/events", self._events),
                Route("/api/builds/{id}/log", self._log),
                Route("/api/launches", self._launches, methods=["POST"]),
                Route("/api/status", self._status),
            ]
        )

    def will_build(self, revision: str, build: str = "b1") -> None:
        """Requests are answered with this build, which waits for its events."""
        self.reply = BuildReply(revision=revision, build=record(build, revision))
        self.builds.setdefault(build, [])

    async def say(
        self,
        phase: Phase,
        message: str,
        *,
        build: str = "b1",
        image: str | None = None,
        failure: FailureKind | None = None,
    ) -> None:
        """The build's next event."""
        events = self.builds[build]
        events.append(
            BuildEvent(seq=len(events) + 1, at=NOW, phase=phase, message=message, image=image, failure=failure)
        )
        async with self._news:
            self._news.notify_all()

    async def publish(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        async with self._news:
            self._news.notify_all()

    async def _catalogue(self, request: Request) -> Response:
        self.requests.append("catalogue")
        etag = f'"{self.catalogue.version}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"etag": etag})
        return Response(self.catalogue.model_dump_json(), media_type="application/json", headers={"etag": etag})

    async def _catalogue_events(self, request: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            told = None
            while True:
                if told != self.catalogue.version:
                    told = self.catalogue.version
                    yield f'data: {{"version": "{told}"}}\r\n\r\n'
                async with self._news:
                    await self._news.wait()

        return StreamingResponse(body(), media_type="text/event-stream")

    async def _request_build(self, request: Request) -> Response:
        self.requests.append("build")
        self.bodies.append(await request.json())
        if isinstance(self.reply, Problem):
            return Response(self.reply.model_dump_json(), self.status, media_type="application/json")
        assert self.reply is not None, "no build was expected"
        return Response(self.reply.model_dump_json(), media_type="application/json")

    async def _record(self, request: Request) -> Response:
        if request.path_params["id"] not in self.builds:
            return JSONResponse({"kind": "not-found", "message": "No such build."}, 404)
        return Response(record(request.path_params["id"], "0" * 40).model_dump_json(), media_type="application/json")

    async def _events(self, request: Request) -> Response:
        events = self.builds.get(request.path_params["id"])
        if events is None:
            return JSONResponse({"kind": "not-found", "message": "No such build."}, 404)
        self.streams += 1
        after = int(request.headers.get("last-event-id", "0"))

        async def body() -> AsyncIterator[str]:
            position = after
            yield ": hello\r\n\r\n"
            while True:
                while position < len(events):
                    event = events[position]
                    position += 1
                    yield f"id: {event.seq}\r\ndata: {event.model_dump_json()}\r\n\r\n"
                    if event.terminal:
                        return
                async with self._news:
                    if position == len(events):
                        await self._news.wait()

        return StreamingResponse(body(), media_type="text/event-stream")

    async def _log(self, request: Request) -> Response:
        if request.path_params["id"] not in self.builds:
            return PlainTextResponse("no", 404)
        return Response(self.log, media_type="text/html")

    async def _launches(self, request: Request) -> Response:
        self.launches.extend(await request.json())
        return JSONResponse({})

    async def _status(self, request: Request) -> Response:
        return JSONResponse({"version": "1", "configuration": "/etc/prebinder.yaml", "queued": []})


def record(build: str, revision: str) -> BuildRecord:
    return BuildRecord(
        id=build,
        repository="gh/ada/course",
        ref="HEAD",
        revision=revision,
        image=f"registry.test/binder/x:{revision}",
        state=BuildState.RUNNING,
        priority=Priority.PERSON,
        attempt=1,
        queued_at=NOW,
    )
