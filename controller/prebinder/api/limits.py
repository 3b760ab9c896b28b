"""What is checked before a request is answered: who asks, and how much is sent."""

from __future__ import annotations

import asyncio
import hmac

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.api.problems import problem
from prebinder.model.failure import FailureKind

_BODY_SECONDS = 30.0
_DROPPED = 3
_CLOSE = {"connection": "close"}


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
    """The body; 413 when it is longer than `limit` bytes, of which no more is ever held.

    A little more is read and dropped, because a client that is still sending when the connection closes sees a broken
    connection instead of the answer (RFC 9112, section 9.6).
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > _DROPPED * limit:
                    break
                else:
                    parts.clear()
    except ClientDisconnect:
        raise HTTPException(400, "The request ended before its body did.") from None
    except TimeoutError:
        raise HTTPException(408, f"The body did not come within {_BODY_SECONDS:g} s.", _CLOSE) from None
    if size > limit:
        raise HTTPException(413, f"The body is larger than {limit} bytes.", _CLOSE)
    return b"".join(parts)
