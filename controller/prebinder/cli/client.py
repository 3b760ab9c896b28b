"""How the command line reaches a running controller and launch endpoint.

On one machine the controller listens on a Unix socket in the state folder, which only its owner may open; elsewhere an
address and a bearer token are given.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import aconnect_sse
from pydantic import ValidationError

from prebinder.config.state import StateFolder
from prebinder.model.events import BuildEvent, BuildRecord, Phase
from prebinder.model.failure import ConfigurationError, FailureKind, PrebinderError, SpecError
from prebinder.model.links import build_path
from prebinder.model.messages import BuildReply, BuildRequest, ControllerStatus, Problem
from prebinder.model.spec import HEAD, Spec, parse_spec

_TIMEOUT = httpx.Timeout(10.0, read=60.0)


class Away(PrebinderError):
    """Nothing answers where a controller or launch endpoint should be."""

    kind = FailureKind.INTERNAL


class Refused(PrebinderError):
    """The controller answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.kind = problem.kind


def spec_from_text(text: str) -> Spec:
    """What a person writes: `gh/owner/repository/ref`, a whole Binder link, or `gh/owner/repository` for the default
    branch. Raises SpecError."""
    _, marker, after = text.partition("/v2/")
    path = (after if marker else text).partition("?")[0].strip("/")
    provider, _, rest = path.partition("/")
    if "://" in text and not marker:
        raise SpecError(f"{text} is not a Binder link. For a Git URL write: git/{text.replace('/', '%2F')}/{HEAD}")
    try:
        return parse_spec(provider, rest)
    except SpecError as error:
        try:
            return parse_spec(provider, f"{rest}/{HEAD}")
        except SpecError:
            raise error from None


@dataclass(frozen=True, slots=True)
class ControllerClient:
    """The controller's API (docs/controller-api.md)."""

    http: httpx.AsyncClient

    async def status(self) -> ControllerStatus:
        return ControllerStatus.model_validate_json((await self._ask("GET", "/api/status")).content)

    async def builds(self, limit: int = 20, repository: str | None = None) -> list[BuildRecord]:
        query: dict[str, str | int] = {"limit": limit, **({"repository": repository} if repository else {})}
        answer = await self._ask("GET", "/api/builds", params=query)
        return [BuildRecord.model_validate(b) for b in answer.json()]

    async def request_build(self, spec: Spec, *, rebuild: bool) -> BuildReply:
        provider, _, rest = str(spec).partition("/")
        body = BuildRequest(provider=provider, spec=rest, rebuild=rebuild)
        answer = await self._ask("POST", "/api/builds", content=body.model_dump_json(), headers=_JSON)
        return BuildReply.model_validate_json(answer.content)

    async def build(self, build_id: str) -> BuildRecord:
        return BuildRecord.model_validate_json((await self._ask("GET", f"/api/builds/{build_id}")).content)

    async def cancel(self, build_id: str) -> None:
        await self._ask("DELETE", f"/api/builds/{build_id}")

    async def log(self, build_id: str) -> str:
        return (await self._ask("GET", f"/api/builds/{build_id}/log")).text

    async def events(self, build_id: str) -> AsyncGenerator[BuildEvent]:
        """The build's events from the first to the terminal one."""
        async with aconnect_sse(self.http, "GET", f"/api/builds/{build_id}/events") as source:
            source.response.raise_for_status()
            async with aclosing(source.aiter_sse()) as events:
                async for event in events:
                    if event.data:
                        yield BuildEvent.model_validate_json(event.data)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **options)
        if answer.is_error:
            try:
                problem = Problem.model_validate_json(answer.content)
            except ValueError:
                raise Away(
                    f"No controller answers at {self.http.base_url}: status {answer.status_code} to {path}."
                ) from None
            raise Refused(problem)
        return answer


_JSON = {"content-type": "application/json"}


def _address(text: str) -> httpx.URL:
    """An address that a person gave. Raises ConfigurationError when it is none."""
    with suppress(httpx.InvalidURL):
        url = httpx.URL(text)
        if url.scheme in ("http", "https") and url.host:
            return url
    raise ConfigurationError(f"{text} is not an address. Write for example http://127.0.0.1:8585/")


@asynccontextmanager
async def connect(state: Path, url: str | None, token: str | None) -> AsyncIterator[ControllerClient]:
    """A client for the controller at `url`, or for the one that uses the state folder.

    Raises Away or ConfigurationError.
    """
    socket = StateFolder(state.absolute()).controller_socket
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if url is None:
        if not socket.exists():
            raise Away(
                f"No Prebinder runs with the state folder {state}. Start it with: prebinder up, "
                "or name another with --state, or a controller with --controller URL."
            )
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        http = httpx.AsyncClient(transport=transport, base_url="http://controller", timeout=_TIMEOUT, headers=headers)
    else:
        http = httpx.AsyncClient(base_url=_address(url), timeout=_TIMEOUT, headers=headers)
    async with http:
        try:
            yield ControllerClient(http)
        except (httpx.HTTPError, ValidationError) as error:
            raise Away(f"No controller answers at {url or f'the socket {socket}'}: {_reason(error)}.") from None


async def launch_events(site: str, spec: Spec) -> AsyncGenerator[dict[str, Any]]:
    """The Binder event stream of a launch, until `ready` or `failed`. Raises Away or ConfigurationError."""
    url = str(_address(site)).rstrip("/") + build_path(spec.repository, spec.ref)
    try:
        async with (
            httpx.AsyncClient(timeout=_TIMEOUT) as http,
            aconnect_sse(http, "GET", url) as source,
        ):
            source.response.raise_for_status()
            async with aclosing(source.aiter_sse()) as events:
                async for event in events:
                    if not event.data:
                        continue
                    data = json.loads(event.data)
                    yield data
                    if data.get("phase") in (Phase.READY, Phase.FAILED):
                        break
    except (httpx.HTTPError, ValueError) as error:
        raise Away(f"No launch endpoint answers at {site}: {_reason(error)}.") from None


def _reason(error: httpx.HTTPError | ValueError) -> str:
    """Why something that answers, or does not, is not what was looked for."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    if isinstance(error, ValueError):
        return "it speaks another language"
    return str(error).rstrip(".") or type(error).__name__
