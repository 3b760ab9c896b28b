"""A stand-in for JupyterHub that speaks the part of its published REST API that a launch uses.

For tests of what the launch endpoint does with the Hub's answers, also with those that a real Hub gives only under
stress. The same calls run against a real JupyterHub in the tests marked `hub`.
API: https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN = "the-token-of-the-service"


@dataclass
class StandinHub:
    """Set the attributes to choose what happens; `users` and `requests` tell what was asked."""

    missing_images: set[str] = field(default_factory=set)
    """Starting one of these fails at once, as when the engine has no such image."""
    failures: int = 0
    """So many starts fail before one succeeds."""
    busy: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Answers 429 with these messages and headers first."""
    break_progress: int = 0
    """So many progress streams break off in the middle."""
    hold: asyncio.Event | None = None
    """Servers become ready when it is set."""
    messages: tuple[str, ...] = ("Server requested", "Spawning server...")
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        user = "/hub/api/users/{name}"
        return Starlette(
            routes=[
                Route("/hub/api/user", self._whoami),
                Route(user, self._create, methods=["POST"]),
                Route(user, self._delete, methods=["DELETE"]),
                Route(user + "/servers/", self._start, methods=["POST"]),
                Route(user + "/server", self._start, methods=["POST"]),
                Route(user + "/server/progress", self._progress),
            ]
        )

    @property
    def launches(self) -> list[dict[str, Any]]:
        """The user options of every server that was started."""
        return [options for options in self.users.values() if options]

    def _refusal(self, request: Request) -> Response | None:
        self.requests.append(f"{request.method} {request.url.path}")
        if request.headers.get("authorization") != f"token {TOKEN}":
            return JSONResponse({"status": 403, "message": "Forbidden"}, 403)
        return None

    async def _whoami(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse({"kind": "service", "name": "prebinder"})

    async def _create(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        name = request.path_params["name"]
        if name in self.users:
            return JSONResponse({"status": 409, "message": f"User {name} already exists"}, 409)
        self.users[name] = {}
        return JSONResponse({"name": name}, 201)

    async def _delete(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        self.users.pop(request.path_params["name"], None)
        self.deleted.append(request.path_params["name"])
        return Response(status_code=204)

    async def _start(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        if self.busy:
            message, headers = self.busy.pop(0)
            return JSONResponse({"status": 429, "message": message}, 429, headers)
        self.users[request.path_params["name"]] = await request.json()
        return Response(status_code=202)

    async def _progress(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        name = request.path_params["name"]
        if name not in self.users:
            return JSONResponse({"status": 404, "message": "Not Found"}, 404)
        return StreamingResponse(self._events(name), media_type="text/event-stream")

    async def _events(self, name: str) -> AsyncIterator[str]:
        def event(**members: Any) -> str:
            return f"data: {json.dumps(members)}\n\n"

        options = self.users[name]
        for position, message in enumerate(self.messages):
            yield event(progress=10 * position, message=message)
        if self.break_progress:
            self.break_progress -= 1
            return
        if options.get("image") in self.missing_images:
            yield event(progress=100, failed=True, message="Spawn failed: 404 no such image")
            return
        if self.failures:
            self.failures -= 1
            yield event(progress=100, failed=True, message="Spawn failed: the machine is tired")
            return
        if self.hold is not None:
            yield "\n\n"
            await self.hold.wait()
        yield event(progress=100, ready=True, message=f"Server ready at /user/{name}/", url=f"/user/{name}/")
