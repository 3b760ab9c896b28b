"""What is checked before a request is answered: who asks, and how much is sent."""

from __future__ import annotations

import hmac

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.api.problems import problem
from prebinder.model.failure import FailureKind


class BearerToken:
    """Refuses requests below `/api/` without the token. Comparing takes the same time wherever the two differ."""

    def __init__(self, app: ASGIApp, token: SecretStr) -> None:
        self._app = app
        self._expected = f"Bearer {token.get_secret_value()}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._expected):
                answer = problem(
                    401,
                    FailureKind.REFUSED,
                    "The controller's token is missing or wrong: send Authorization: Bearer with controller.token.",
                    {"www-authenticate": "Bearer"},
                )
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it is longer than `limit` bytes (413)."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise HTTPException(400, "The request ended before its body did.") from None
    return b"".join(parts)


def _too_large(limit: int) -> HTTPException:
    # The rest is not read: the connection ends with the answer.
    return HTTPException(413, f"The body is larger than {limit} bytes.", {"connection": "close"})
