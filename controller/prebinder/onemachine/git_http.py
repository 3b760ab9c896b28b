"""The demo's Git server: bare repositories below one folder over smart HTTP, by the real `git http-backend`.

`git clone`, commit, `git push` work against it; the push runs the repository's hooks. Guarantees:
- Only the three requests of the smart protocol (gitprotocol-http(5)) reach Git; anything else is 404. Files are never
  served as files, and no path leads out of the folder.
- Bodies stream both ways; size, time and the number of processes are bounded; a client that goes away takes its
  process group with it.
- Pushes come from this machine alone unless told otherwise, for there are no accounts here. A page of another site
  cannot push either: `git http-backend` insists on a content type that browsers do not send across origins unasked.
  Checking the Host header (DNS rebinding) is the caller's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import signal
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import structlog
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from prebinder.processes import end

log = structlog.get_logger(__name__)

_ROUTE = re.compile(r"/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*\.git)/(?P<what>info/refs|git-upload-pack|git-receive-pack)")
_SERVICES = frozenset({"git-upload-pack", "git-receive-pack"})
_CHUNK = 64 * 1024
_HEADER_LIMIT = 16 * 1024
_ERROR_LIMIT = 4 * 1024
# What the CGI program and the hooks below it may know of our own environment.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


class GitHttp:
    """An ASGI application; mount it anywhere.

    `folder` holds the bare repositories, each named `<name>.git`. `max_body` bytes bound one request, `time_limit`
    seconds one exchange, `parallel` the Git processes that run at once (further requests wait).
    """

    def __init__(
        self,
        folder: Path,
        *,
        push_from_anywhere: bool = False,
        max_body: int = 256 * 2**20,
        time_limit: float = 300.0,
        parallel: int = 16,
    ) -> None:
        self._folder = folder.absolute()
        self._push_from_anywhere = push_from_anywhere
        self._max_body = max_body
        self._time_limit = time_limit
        self._slots = asyncio.Semaphore(parallel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        async with self._slots:
            exchange = _Exchange(scope, receive, send, self._max_body)
            try:
                async with asyncio.timeout(self._time_limit):
                    await exchange.run(self._environment(scope))
            except (TimeoutError, _BadAnswer) as error:
                log.warning(
                    "git_http.failed", path=scope["path"], error=str(error) or "time limit", git=exchange.errors
                )
                if exchange.too_large:
                    await _too_large(self._max_body)(scope, receive, send)
                elif not exchange.started:
                    await PlainTextResponse("Git did not answer.\n", 500)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """The answer to a request that Git never sees, or None."""
        match = _ROUTE.fullmatch(_path(scope))
        if match is None or not (self._folder / match["name"]).is_dir():
            return PlainTextResponse("No such repository.\n", 404)
        what = match["what"]
        if what == "info/refs":
            service = scope["query_string"].decode("latin-1").removeprefix("service=")
            known = scope["method"] == "GET" and service in _SERVICES
        else:
            service, known = what, scope["method"] == "POST"
        if not known:
            return PlainTextResponse("Only Git's smart protocol is spoken here.\n", 404)
        if service == "git-receive-pack" and not (self._push_from_anywhere or _is_local(scope)):
            return PlainTextResponse("Pushes are taken from this machine alone.\n", 403)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body:
            return _too_large(self._max_body)
        return None

    def _environment(self, scope: Scope) -> dict[str, str]:
        """The CGI variables (RFC 3875) that git-http-backend(1) reads, and nothing of ours that it needs not."""
        headers = Headers(scope=scope)
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {
            "GIT_PROJECT_ROOT": str(self._folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "receive.maxInputSize",
            "GIT_CONFIG_VALUE_0": str(self._max_body),
            "PATH_INFO": _path(scope),
            "QUERY_STRING": scope["query_string"].decode("latin-1"),
            "REQUEST_METHOD": scope["method"],
            "CONTENT_TYPE": headers.get("content-type", ""),
            "REMOTE_ADDR": scope["client"][0] if scope.get("client") else "",
        }
        for name in ("content-length", "content-encoding", "git-protocol"):
            if name in headers:
                prefix = "" if name == "content-length" else "HTTP_"
                environment[prefix + name.upper().replace("-", "_")] = headers[name]
        return environment


class _BadAnswer(Exception):
    """`git http-backend` broke off, or wrote something that is no CGI response."""


class _Exchange:
    """One request: its body goes to the process while the process's answer goes to the client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._room = max_body
        self.started = False
        self.too_large = False
        self.errors = ""

    async def run(self, environment: dict[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        feeding = asyncio.create_task(self._feed(process))
        collecting = asyncio.create_task(self._collect_errors(process))
        try:
            await self._answer(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            feeding.cancel()
            await asyncio.gather(feeding, collecting, return_exceptions=True)
            await end(process)

    async def _feed(self, process: Process) -> None:
        """Pass the body on; then watch for the client's going away, which ends the process group."""
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    break
                chunk = message.get("body", b"")
                self._room -= len(chunk)
                if self._room < 0:
                    self.too_large = not self.started
                    break
                if not process.stdin.is_closing():
                    process.stdin.write(chunk)
                    await process.stdin.drain()
                    if not message.get("more_body"):
                        process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def _collect_errors(self, process: Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(_CHUNK):
            self.errors = (self.errors + chunk.decode("utf-8", "replace"))[:_ERROR_LIMIT]

    async def _answer(self, process: Process) -> None:
        assert process.stdout is not None
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = await process.stdout.read(_CHUNK)
            if not chunk or len(head) > _HEADER_LIMIT:
                raise _BadAnswer("no CGI header")
            head += chunk
        head, _, chunk = head.partition(b"\r\n\r\n")
        http_status, headers = _cgi_header(head)
        # Git writes its header before it has read the push: wait for its first word, so that we can still refuse.
        chunk = chunk or await process.stdout.read(_CHUNK)
        if not chunk:
            await self._check_end(process)
        self.started = True
        await self._send({"type": "http.response.start", "status": http_status, "headers": headers})
        while chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await process.stdout.read(_CHUNK)
        await self._check_end(process)
        await self._send({"type": "http.response.body", "body": b""})

    async def _check_end(self, process: Process) -> None:
        """A process that failed by itself has told the client why; one that was ended has not."""
        status = await process.wait()
        if status < 0:
            raise _BadAnswer(f"ended by signal {-status}")


def _cgi_header(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of a CGI response (RFC 3875, section 6.3)."""
    status = 200
    headers: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            raise _BadAnswer("malformed CGI header")
        if name.lower() == b"status":
            status = int(value.split()[0])
        else:
            headers.append((name.lower(), value.strip()))
    return status, headers


def _too_large(limit: int) -> PlainTextResponse:
    return PlainTextResponse(f"More than {limit} bytes in one push.\n", 413)


def _path(scope: Scope) -> str:
    """The path below the place where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    if client is None:
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
