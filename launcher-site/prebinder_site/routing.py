"""Routes by the beginning of a path, for paths whose rest must stay as the client sent it.

Starlette's own path parameters are decoded and must match a pattern; a Binder spec is percent-escaped on purpose
(`%2F` is not `/` in it), and whatever stands there must reach the code that refuses it in words.
"""

from __future__ import annotations

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix(BaseRoute):
    """Hands every HTTP request whose path begins with `prefix` to `app`."""

    def __init__(self, prefix: str, app: ASGIApp) -> None:
        self.prefix = prefix
        self.app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["path"].startswith(self.prefix):
            return Match.FULL, {}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def undecoded_rest(scope: Scope, prefix: str) -> str:
    """What follows `prefix` in the path, still percent-escaped. Bytes that are not ASCII are escaped.

    Without the raw path (not every ASGI server gives it) raises ValueError, since guessing would change the meaning.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raise ValueError("the server does not give the undecoded path")
    path = raw.partition(b"?")[0]
    start = prefix.encode()
    # A proxy or client may have escaped even the prefix; then there is no undecoded rest to be had.
    if not path.startswith(start):
        raise ValueError("the path's beginning is escaped")
    return "".join(chr(b) if b < 0x80 else f"%{b:02X}" for b in path[len(start) :])
