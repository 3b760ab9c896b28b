"""The controller over HTTP, as docs/controller-api.md says: shapes in and out are the models of `prebinder.model`.

`create_app` is everything, for the endpoint and the command line; `create_hooks_app` is the webhooks alone, for the
port that the world reaches.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import SecretStr, TypeAdapter, ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prebinder.api.limits import BearerToken, read_body
from prebinder.api.problems import on_defect, on_http_error, on_prebinder_error
from prebinder.model.events import BuildEvent, BuildRecord, BuildState
from prebinder.model.failure import PrebinderError
from prebinder.model.messages import BuildRequest, LaunchRecord
from prebinder.reconcile import Controller

T = TypeVar("T")

WEBHOOK_LIMIT = 5 * 10**6
REQUEST_LIMIT = 64 * 1024
LAUNCHES_LIMIT = 5 * 10**6
KEEPALIVE = 20
MOST_BUILDS = 500

_BUILD_REQUEST = TypeAdapter(BuildRequest)
_LAUNCHES = TypeAdapter(list[LaunchRecord])
_BUILDS = TypeAdapter(list[BuildRecord])
_HANDLERS: dict[Any, Any] = {
    PrebinderError: on_prebinder_error,
    HTTPException: on_http_error,
    Exception: on_defect,
}


def create_app(controller: Controller, token: SecretStr | None = None) -> Starlette:
    """The whole API. With a token, everything below `/api/` needs it."""
    api = ControllerApi(controller)
    return Starlette(
        routes=api.routes(),
        middleware=[Middleware(BearerToken, token=token)] if token is not None else [],
        exception_handlers=_HANDLERS,
    )


def create_hooks_app(controller: Controller) -> Starlette:
    """`/hooks/{provider}` alone: signed, so it needs no token."""
    return Starlette(routes=[ControllerApi(controller).hooks()], exception_handlers=_HANDLERS)


class ControllerApi:
    """The routes of one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def routes(self) -> list[Route]:
        return [
            self.hooks(),
            Route("/api/catalogue", self._catalogue),
            Route("/api/catalogue/events", self._catalogue_events),
            Route("/api/builds", self._request_build, methods=["POST"]),
            Route("/api/builds", self._builds),
            Route("/api/builds/{id}", self._build),
            Route("/api/builds/{id}", self._cancel, methods=["DELETE"]),
            Route("/api/builds/{id}/events", self._events),
            Route("/api/builds/{id}/log", self._log),
            Route("/api/launches", self._launches, methods=["POST"]),
            Route("/api/status", self._status),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]

    def hooks(self) -> Route:
        return Route("/hooks/{provider}", self._hook, methods=["POST"])

    async def _hook(self, request: Request) -> Response:
        body = await read_body(request, WEBHOOK_LIMIT)
        headers = {name.lower(): value for name, value in request.headers.items()}
        refs = await self._controller.webhook(request.path_params["provider"], headers, body)
        return _json(f'{{"refs": {refs}}}', 202)

    async def _catalogue(self, request: Request) -> Response:
        catalogue = self._controller.catalogue()
        headers = {"etag": f'"{catalogue.version}"', "cache-control": "no-cache"}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if headers["etag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return _json(catalogue.model_dump_json(), headers=headers)

    async def _catalogue_events(self, _: Request) -> Response:
        async def versions() -> AsyncIterator[ServerSentEvent]:
            async for catalogue in self._controller.catalogue_changes():
                yield ServerSentEvent(data=f'{{"version": "{catalogue.version}"}}', id=catalogue.version)

        return EventSourceResponse(versions(), ping=KEEPALIVE)

    async def _request_build(self, request: Request) -> Response:
        body = await read_body(request, REQUEST_LIMIT)
        reply = await self._controller.request_build(_parse(_BUILD_REQUEST, body))
        return _json(reply.model_dump_json())

    async def _builds(self, request: Request) -> Response:
        query = request.query_params
        try:
            limit = min(max(int(query.get("limit", "50")), 1), MOST_BUILDS)
            state = BuildState(query["state"]) if "state" in query else None
        except ValueError:
            states = ", ".join(state.value for state in BuildState)
            raise HTTPException(400, f"limit is a number, and state is one of {states}.") from None
        records = await self._controller.builds(query.get("repository"), state, limit)
        return _json(_BUILDS.dump_json(records))

    async def _build(self, request: Request) -> Response:
        return _json((await self._controller.build(request.path_params["id"])).model_dump_json())

    async def _cancel(self, request: Request) -> Response:
        return _json((await self._controller.cancel(request.path_params["id"])).model_dump_json(), 202)

    async def _events(self, request: Request) -> Response:
        given = request.headers.get("last-event-id", "")
        after = int(given) if given.isascii() and given.isdecimal() and len(given) < 16 else 0
        stream = await self._controller.events(request.path_params["id"], after)
        return EventSourceResponse(_as_sse(stream), ping=KEEPALIVE)

    async def _log(self, request: Request) -> Response:
        events = await self._controller.log(request.path_params["id"])
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
        return Response("".join(e.message for e in events), headers=headers, media_type="text/plain; charset=utf-8")

    async def _launches(self, request: Request) -> Response:
        records = _parse(_LAUNCHES, await read_body(request, LAUNCHES_LIMIT))
        await self._controller.record_launches(records)
        return Response(status_code=204)

    async def _status(self, _: Request) -> Response:
        return _json((await self._controller.status()).model_dump_json())

    async def _health(self, _: Request) -> Response:
        health = await self._controller.health()
        return _json(health.model_dump_json(exclude_none=True), 200 if health.ok else 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._controller.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _as_sse(events: AsyncIterator[BuildEvent]) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(cast(AsyncGenerator[BuildEvent], events)):
        async for event in events:
            yield ServerSentEvent(data=event.model_dump_json(exclude_none=True), id=str(event.seq))


def _json(body: str | bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _parse(adapter: TypeAdapter[T], body: bytes) -> T:
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise HTTPException(400, f"{where}: {first['msg']}.") from None
