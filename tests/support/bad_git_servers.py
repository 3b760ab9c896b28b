"""Servers that treat Git clients badly: for tests of whatever speaks to Git hosts."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

_ADVERTISEMENT = "application/x-git-upload-pack-advertisement"


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word. The value is its address, without a slash."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _everywhere(answer: Response) -> ASGIApp:
    async def respond(request: Request) -> Response:
        return answer

    return Starlette(routes=[Route("/{path:path}", respond)])


def answering(status: int, body: str = "") -> ASGIApp:
    """The same status for whatever is asked."""
    return _everywhere(Response(body, status))


def redirecting(target: str) -> ASGIApp:
    """Sends everybody to `target`, whatever that is."""
    response = RedirectResponse("/")
    response.headers["location"] = target
    return _everywhere(response)


def packet(line: bytes) -> bytes:
    """One line in Git's framing (gitprotocol-common(5), pkt-line)."""
    return b"%04x%b" % (len(line) + 4, line)


def advertising(lines: Iterator[bytes] | list[bytes]) -> ASGIApp:
    """Protocol version 0: whatever refs the lines hold, however many."""

    async def respond(request: Request) -> Response:
        def stream() -> Iterator[bytes]:
            yield packet(b"# service=git-upload-pack\n") + b"0000"
            remaining = iter(lines)
            yield packet(next(remaining) + b"\0multi_ack\n")
            while batch := list(itertools.islice(remaining, 5000)):
                yield b"".join(packet(line + b"\n") for line in batch)
            yield b"0000"

        return StreamingResponse(stream(), media_type=_ADVERTISEMENT)

    return Starlette(routes=[Route("/{path:path}", respond)])


def flood() -> Iterator[bytes]:
    """Branches without end, many in one piece."""
    return (b"%040x refs/heads/%0200d" % (number + 1, number) for number in itertools.count())
