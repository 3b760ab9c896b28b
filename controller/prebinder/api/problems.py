"""Errors over HTTP: each kind of error has one status, and a body that a person can read. No traceback gets out."""

from __future__ import annotations

import math

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from prebinder.ledger import LedgerError
from prebinder.model.failure import (
    EngineError,
    FailureKind,
    HostError,
    HostUnavailable,
    PrebinderError,
    RefNotFound,
    RefusedError,
    RegistryError,
    RepositoryNotFound,
    SpecError,
    WebhookMalformed,
    WebhookRejected,
)
from prebinder.model.messages import Problem
from prebinder.reconcile import BuildEnded, BuildNotFound, HookClosed, QueueFull, UnsupportedHost

log = structlog.get_logger(__name__)

# The first class that fits counts, so subclasses stand before their bases.
_STATUSES: tuple[tuple[type[PrebinderError], int], ...] = (
    (SpecError, 400),
    (WebhookMalformed, 400),
    (WebhookRejected, 401),
    (RefusedError, 403),
    (UnsupportedHost, 403),
    (HookClosed, 404),
    (BuildNotFound, 404),
    (RefNotFound, 404),
    (RepositoryNotFound, 404),
    (BuildEnded, 409),
    (QueueFull, 429),
    (HostError, 503),
    (RegistryError, 503),
    (EngineError, 503),
    (LedgerError, 503),
)


def status_of(error: PrebinderError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def problem(status: int, kind: FailureKind, message: str, headers: dict[str, str] | None = None) -> Response:
    body = Problem(kind=kind, message=message).model_dump_json()
    return Response(body, status, headers, media_type="application/json")


async def on_prebinder_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PrebinderError)
    pause = error.retry_after if isinstance(error, HostUnavailable | QueueFull) else None
    headers = {"retry-after": str(math.ceil(pause))} if pause is not None else None
    return problem(status_of(error), error.kind, str(error), headers)


async def on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = FailureKind.NOT_FOUND if error.status_code == 404 else FailureKind.REFUSED
    return problem(error.status_code, kind, error.detail, dict(error.headers or {}))


async def on_defect(request: Request, error: Exception) -> Response:
    """The last resort; Starlette logs the traceback through the server."""
    log.error("api.defect", path=request.url.path, problem=type(error).__name__)
    return problem(500, FailureKind.INTERNAL, f"{FailureKind.INTERNAL.heading}. {FailureKind.INTERNAL.advice}")
