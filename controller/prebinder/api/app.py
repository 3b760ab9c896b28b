"""The controller's HTTP API: webhooks in, build requests and event streams out. Routes: docs/controller-api.md.

Guarantees:
- All is bounded: bodies are counted while they are read, streams end with their build, the client or the server.
- Errors are a kind and words for people, never a traceback.
- With a token, every route but `/hooks/*`, `/health` and `/metrics` demands it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.model.events import BuildState
from prebinder.model.failure import (
    FailureKind,
    HostUnavailable,
    PrebinderError,
    SpecError,
    WebhookMalformed,
    WebhookRejected,
)
from prebinder.model.messages import BuildRequest, LaunchRecord, Problem
from prebinder.reconcile import BuildEnded, BuildNotFound, Controller, QueueFull
from prebinder.reconcile.errors import HookClosed

log = structlog.get_logger(__name__)

MAX_BODY = 64 * 1024
MAX_LAUNCHES = 2**20
MAX_WEBHOOK = 5 * 10**6
_KEEPALIVE = 20
_OPEN = ("/hooks/", "/health", "/metrics")
Body = TypeVar("Body", bound=BaseModel)
_LAUNCHES = TypeAdapter(list[LaunchRecord])
_STATUS = {
    FailureKind.NOT_FOUND: 404,
    FailureKind.REFUSED: 403,
    FailureKind.GIT_HOST: 503,
    FailureKind.REGISTRY: 503,
    FailureKind.ENGINE: 503,
    FailureKind.HUB: 503,
}


class TooLarge(PrebinderError):
    """A body is larger than its route takes."""

    kind = FailureKind.REFUSED


class BearerToken:
    """Demands `Authorization: Bearer <token>` but on the open routes; compared in constant time."""

    def __init__(self, app: ASGIApp, token: SecretStr) -> None:
        self._app = app
        self._wanted = f"Bearer {token.get_secret_value()}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(_OPEN):
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if not hmac.compare_digest(given, self._wanted):
                words = "The controller's token is missing or wrong (controller.token)."
                await problem(FailureKind.REFUSED, words, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def create_app(controller: Controller, token: SecretStr | None = None) -> Starlette:
    """All of docs/controller-api.md, for a started controller."""
    routes = Routes(controller)
    return Starlette(
        routes=[
            Mount("/hooks", routes=[Route("/{provider}", routes.hook, methods=["POST"])]),
            Route("/api/catalogue", routes.catalogue),
            Route("/api/catalogue/events", routes.catalogue_events),
            Route("/api/builds", routes.request_build, methods=["POST"]),
            Route("/api/builds", routes.builds),
            Route("/api/builds/{id}", routes.build),
            Route("/api/builds/{id}", routes.cancel, methods=["DELETE"]),
            Route("/api/builds/{id}/events", routes.events),
            Route("/api/builds/{id}/log", routes.log),
            Route("/api/launches", routes.launches, methods=["POST"]),
            Route("/api/status", routes.status),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
        ],
        middleware=[Middleware(BearerToken, token=token)] if token else [],
        exception_handlers=_HANDLERS,
    )


def create_hooks_app(controller: Controller) -> Starlette:
    """Only `/hooks/*`, for the public port."""
    return Starlette(
        routes=[Route("/hooks/{provider}", Routes(controller).hook, methods=["POST"])],
        exception_handlers=_HANDLERS,
    )


class Routes:
    """One method a route."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def hook(self, request: Request) -> Response:
        body = await read(request, MAX_WEBHOOK)
        headers: Mapping[str, str] = {k.lower(): v for k, v in request.headers.items()}
        told = await self._controller.webhook(request.path_params["provider"], headers, body)
        return JSONResponse({"refs": told}, 202)

    async def catalogue(self, request: Request) -> Response:
        catalogue = self._controller.catalogue()
        tag = f'"{catalogue.version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        return Response(catalogue.model_dump_json(), media_type="application/json", headers={"etag": tag})

    async def catalogue_events(self, _: Request) -> Response:
        async def stream() -> AsyncIterator[ServerSentEvent]:
            async for catalogue in self._controller.catalogue_changes():
                yield ServerSentEvent(json.dumps({"version": catalogue.version}))

        return EventSourceResponse(stream(), ping=_KEEPALIVE)

    async def request_build(self, request: Request) -> Response:
        wanted = parsed(BuildRequest, await read(request, MAX_BODY))
        return answer(await self._controller.request_build(wanted))

    async def builds(self, request: Request) -> Response:
        query = request.query_params
        try:
            limit = min(max(int(query.get("limit", "50")), 1), 500)
            state = BuildState(query["state"]) if "state" in query else None
        except ValueError:
            words = f"limit is a number, state one of {', '.join(BuildState)}."
            return problem(FailureKind.INTERNAL, words, 400)
        found = await self._controller.builds(query.get("repository"), state, limit)
        return JSONResponse([b.model_dump(mode="json") for b in found])

    async def build(self, request: Request) -> Response:
        return answer(await self._controller.build(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        await self._controller.cancel(request.path_params["id"])
        return Response(status_code=202)

    async def events(self, request: Request) -> Response:
        record = await self._controller.build(request.path_params["id"])
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 12 else 0

        async def stream() -> AsyncIterator[ServerSentEvent]:
            async for event in self._controller.follow(record.id, after):
                yield ServerSentEvent(event.model_dump_json(), id=str(event.seq))

        return EventSourceResponse(stream(), ping=_KEEPALIVE)

    async def log(self, request: Request) -> Response:
        record = await self._controller.build(request.path_params["id"])

        async def lines() -> AsyncIterator[str]:
            for event in await self._controller.logs.read(record.id):
                yield event.message

        headers = {"x-content-type-options": "nosniff"}
        return StreamingResponse(lines(), media_type="text/plain; charset=utf-8", headers=headers)

    async def launches(self, request: Request) -> Response:
        body = await read(request, MAX_LAUNCHES)
        try:
            records = _LAUNCHES.validate_json(body)
        except ValidationError as error:
            return problem(FailureKind.INTERNAL, _first(error), 400)
        await self._controller.record_launches(records)
        return Response(status_code=202)

    async def status(self, _: Request) -> Response:
        return answer(await self._controller.status())

    async def health(self, _: Request) -> Response:
        health = await self._controller.health()
        return answer(health, 200 if health.ok else 503)

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._controller.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def read(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is longer than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")
    return bytes(body)


def parsed(model: type[Body], body: bytes) -> Body:
    """The body as its model. Raises HTTPException (400)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, _first(error)) from None


def answer(body: BaseModel, status: int = 200) -> Response:
    return Response(body.model_dump_json(), status, media_type="application/json")


def problem(kind: FailureKind, message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """The body of every error."""
    return Response(Problem(kind=kind, message=message).model_dump_json(), status, headers, "application/json")


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, without the input."""
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}." if where else f"{detail['msg']}."


def _status_of(error: PrebinderError) -> int:
    match error:
        case TooLarge():
            return 413
        case SpecError() | WebhookMalformed():
            return 400
        case QueueFull():
            return 429
        case BuildEnded():
            return 409
        case BuildNotFound() | HookClosed():
            return 404
        case WebhookRejected():
            return 401
        case _:
            return _STATUS.get(error.kind, 500)


async def _expected(_: Request, error: Exception) -> Response:
    assert isinstance(error, PrebinderError)
    pause = getattr(error, "retry_after", None)
    headers = {"retry-after": str(max(1, round(pause)))} if pause else {}
    if isinstance(error, HostUnavailable):
        log.info("api.host_unavailable", problem=str(error))
    return problem(error.kind, str(error), _status_of(error), headers)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = FailureKind.NOT_FOUND if error.status_code == 404 else FailureKind.INTERNAL
    return problem(kind, str(error.detail), error.status_code)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("api.defect", path=request.url.path, exc_info=error)
    return problem(FailureKind.INTERNAL, "Something went wrong inside the controller; its log says more.", 500)


_HANDLERS = {PrebinderError: _expected, HTTPException: _http, Exception: _unexpected}
