"""Response headers that must not be forgotten anywhere: security and cross-origin access, as ASGI middleware."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The site's pages use no inline script or style and no other origin.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class SecurityHeaders:
    """Adds the security headers to every response."""

    _headers = (
        (b"content-security-policy", _POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"x-frame-options", b"DENY"),
        (b"cross-origin-opener-policy", b"same-origin"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class CrossOrigin:
    """Lets pages of other sites read the Binder API (thebe, MyST, `@jupyterhub/binderhub-client`).

    No credentials are involved: the API knows no cookies. `allow_origin` is `*`, one origin, or empty for none.
    """

    _allowed_headers = b"authorization, cache-control, last-event-id, x-xsrftoken"

    def __init__(self, app: ASGIApp, *, allow_origin: str, paths: Iterable[str]) -> None:
        self.app = app
        self._paths = tuple(paths)
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        if allow_origin:
            self._headers = (
                (b"access-control-allow-origin", allow_origin.encode("ascii")),
                (b"access-control-allow-headers", self._allowed_headers),
                (b"cross-origin-resource-policy", b"cross-origin"),
                *(((b"vary", b"origin"),) if allow_origin != "*" else ()),
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._headers or not scope["path"].startswith(self._paths):
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            preflight = [
                *self._headers,
                (b"access-control-allow-methods", b"GET"),
                (b"access-control-max-age", b"86400"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": preflight})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)
