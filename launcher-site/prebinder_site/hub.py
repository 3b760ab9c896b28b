"""The JupyterHub client of a click: a temporary user, its server, and the server's progress until it is ready.

On aiohttp, because a hundred clicks at once keep a hundred streams open. Three requests a launch: create the user,
start its server with the click's options, follow the progress (JupyterHub's REST API, `slow_spawn_timeout = 0`).
A failed launch deletes its user again, in the background. A launch that nobody waits for any more goes on, and the
culler stops it like any idle server: to break off a container's start can leave the container behind.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import string
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
import structlog
from pydantic import SecretStr

from prebinder.model.failure import HubError

log = structlog.get_logger(__name__)

_SUFFIX = string.ascii_lowercase + string.digits
_REQUEST = aiohttp.ClientTimeout(total=30, sock_connect=5)
# The Hub sends a keepalive every 8 s while a server starts.
_PROGRESS = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=40)
_TRIES = 3
_PAUSE = 0.3


class HubBusy(HubError):
    """The Hub takes no more servers now. `retry_after` (seconds) is set when it said that waiting helps."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SpawnFailed(HubError):
    """The Hub tried to start the server, and it did not start."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the Hub says while the server starts."""

    message: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `url` ends in a slash; `token` lets its holder in."""

    url: str
    token: str


def user_name(repo_url: str, random: Callable[[int], str]) -> str:
    """`<repository>-<random>`, like BinderHub's: lower-case letters, digits and hyphens, at most 41 characters.

    The name shows in the server's address and must not be guessed by accident, but it is no secret: the token is.
    """
    path = unquote(urlsplit(repo_url).path if "://" in repo_url else repo_url.partition(":")[2] or repo_url)
    slug = re.sub(r"[^a-z0-9]+", "-", path.lower().removesuffix("/").removesuffix(".git")).strip("-") or "binder"
    if len(slug) > 32:
        slug = f"{slug[:15]}-{slug[-16:]}".replace("--", "-")
    return f"{slug.strip('-')}-{random(8)}"


def _random(length: int) -> str:
    return "".join(secrets.choice(_SUFFIX) for _ in range(length))


class JupyterHub:
    """One Hub. `api_url` and `public_url` end in a slash. Use it inside one event loop and close it."""

    def __init__(self, api_url: str, public_url: str, token: SecretStr, *, start_timeout: float) -> None:
        self._api = api_url
        self._public = public_url
        self._token = token
        self._start_timeout = start_timeout
        self._session: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
                headers={"Authorization": f"token {self._token.get_secret_value()}"},
                timeout=_REQUEST,
                read_bufsize=2**18,
            )
        return self._session

    async def launch(self, image: str, repo_url: str, options: Mapping[str, str]) -> AsyncGenerator[Progress | Server]:
        """Start a server from `image` for a new user; the last thing yielded is the `Server`.

        `options` are the further user options (the `binder_…` addresses). Raises HubBusy, SpawnFailed or HubError.
        """
        name = await self._create_user(repo_url)
        token = secrets.token_urlsafe(32)
        deadline = asyncio.get_running_loop().time() + self._start_timeout + 15
        try:
            body = {"image": image, "repo_url": repo_url, "token": token, **options}
            await self._request("POST", f"users/{name}/servers/", body, "start the server")
            async with aclosing(self._progress(name)) as events:
                while True:
                    # Not around the whole loop: a generator must not be left inside a timeout while it is suspended.
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events)
                    message = str(event.get("message") or "")
                    if event.get("failed"):
                        raise SpawnFailed(f"JupyterHub did not start the server: {_one_line(message)}")
                    if message:
                        yield Progress(message)
                    if event.get("ready"):
                        path = str(event.get("url") or f"/user/{quote(name)}/")
                        yield Server(urljoin(self._public, path.rstrip("/") + "/"), token)
                        return
        except TimeoutError:
            self._in_background(self._delete_user(name))
            raise SpawnFailed(
                f"The server did not start within {self._start_timeout:.0f} seconds. Try again, or tell the operator."
            ) from None
        except HubError:
            self._in_background(self._delete_user(name))
            raise

    async def health(self) -> None:
        """Raises HubError when the Hub does not answer, or not to us."""
        await self._request("GET", "user", None, "answer", tries=1, timeout=aiohttp.ClientTimeout(total=5))

    async def aclose(self) -> None:
        """Wait shortly for what runs in the background, then give back connections."""
        if self._background:
            await asyncio.wait(self._background, timeout=2)
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _create_user(self, repo_url: str) -> str:
        for _ in range(_TRIES):
            name = user_name(repo_url, _random)
            status = await self._request("POST", f"users/{name}", None, "create a user", allowed=(409,))
            if status != 409:
                return name
        raise HubError("JupyterHub has a user of every name that was tried. Tell the operator.")

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        what: str,
        *,
        allowed: tuple[int, ...] = (),
        tries: int = _TRIES,
        timeout: aiohttp.ClientTimeout = _REQUEST,
    ) -> int:
        """One request, tried again while the Hub cannot be connected to. Returns the status."""
        for attempt in range(1, tries + 1):
            try:
                async with self.session.request(method, self._api + path, json=body, timeout=timeout) as response:
                    if response.status < 400 or response.status in allowed:
                        return response.status
                    raise await _refusal(response, what)
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if attempt == tries:
                    raise HubError(
                        "JupyterHub, which starts the servers, does not answer. Try again in a minute."
                    ) from None
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise HubError(f"JupyterHub did not {what} in time ({type(error).__name__}). Try again.") from None
        raise AssertionError("unreachable")

    async def _progress(self, name: str) -> AsyncGenerator[dict[str, Any]]:
        """The server's progress events. A broken stream is opened again: the Hub then tells how it ended."""
        for attempt in range(1, _TRIES + 1):
            try:
                url = f"{self._api}users/{name}/server/progress"
                async with self.session.get(url, timeout=_PROGRESS) as response:
                    if response.status >= 400:
                        raise await _refusal(response, "start the server")
                    async for line in response.content:
                        if line.startswith(b"data:"):
                            event = json.loads(line[5:])
                            yield event
                            if event.get("ready") or event.get("failed"):
                                return
            except (aiohttp.ClientError, ConnectionError, ValueError) as error:
                log.warning("hub.progress.broken", user=name, attempt=attempt, error=repr(error))
            if attempt < _TRIES:
                await asyncio.sleep(_PAUSE * 2**attempt)
        raise HubError("The connection to JupyterHub broke while the server started. Try again in a minute.")

    async def _delete_user(self, name: str) -> None:
        try:
            await self._request("DELETE", f"users/{name}", None, "delete the user", allowed=(400, 404))
        except HubError as error:
            log.info("hub.user.left", user=name, reason=str(error), next="the culler removes it")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _refusal(response: aiohttp.ClientResponse, what: str) -> HubError:
    """A refusing answer as an error, in the Hub's own words where they help the reader."""
    try:
        message = str(json.loads(await response.content.read(65536)).get("message") or "")
    except (ValueError, AttributeError, aiohttp.ClientError):
        message = ""
    if response.status == 429:
        retry_after = response.headers.get("Retry-After", "")
        seconds = float(retry_after) if re.fullmatch(r"\d{1,4}", retry_after) else None
        said = _one_line(message) or "all servers are taken"
        return HubBusy(f"JupyterHub takes no more servers at the moment: {said}", seconds)
    if response.status in (401, 403):
        return HubError("JupyterHub refuses Prebinder's token. Tell the operator to check hub.token and its scopes.")
    return HubError(f"JupyterHub could not {what}: {_one_line(message) or f'status {response.status}'}")


def _one_line(text: str) -> str:
    """Text from the Hub for a message to people: one line, short."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"
