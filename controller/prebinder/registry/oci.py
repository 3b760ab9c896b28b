"""An OCI registry as the place where images are kept, over its HTTP API.

Source: OCI distribution specification 1.1 (manifests, errors), and the token flow of the distribution project's
"Token Authentication Specification". Guarantees:
- A manifest is found whichever type it has: Docker's or OCI's, of one image or of several (index).
- Every question ends within its time limit; 5xx, 429 and connection errors are tried again twice, no more.
- Credentials go to the registry and to the token server that it names over TLS (or beside it), nowhere else;
  no error shows them.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import stamina

from prebinder.config.models import RegistryConfig
from prebinder.model.failure import RegistryError
from prebinder.model.images import ImageName
from prebinder.registry.credentials import Credentials, read_credentials

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,}")
_CHALLENGE = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TOKEN_SECONDS = 60.0  # the specification's default and minimum
_TOKEN_MARGIN = 5.0
_ATTEMPTS = 3
_MANIFEST_LIMIT = 4 * 2**20


class _Again(Exception):
    """An answer after which the same question may be asked again."""


Content = Callable[[], bytes | AsyncIterator[bytes]]
"""A request's body, given anew for each time that it is sent."""


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    until: float


class OCIRegistry:
    """The registry that `config.prefix` names. One connection pool; safe for concurrent use."""

    pushes = True

    def __init__(self, config: RegistryConfig) -> None:
        assert config.prefix is not None
        self._config = config
        self._timeout = config.timeout
        self.host = config.prefix.split("/", 1)[0]
        scheme = "http" if config.insecure else "https"
        endpoint = "registry-1.docker.io" if self.host in ("docker.io", "index.docker.io") else self.host
        self._client = httpx.AsyncClient(
            base_url=f"{scheme}://{endpoint}/v2/",
            timeout=httpx.Timeout(config.timeout, connect=min(config.timeout, 5.0)),
            headers={"User-Agent": "prebinder"},
            limits=httpx.Limits(max_connections=50),
        )
        self._tokens: dict[str, _Token] = {}
        self._token_lock = asyncio.Lock()
        self._basic = False

    async def digest(self, image: ImageName) -> str | None:
        """The digest of the image's manifest or index; None when there is none. Raises RegistryError."""
        path = f"{self._path(image)}/manifests/{image.tag}"
        answer = await self._ask("HEAD", path, _scope(self._path(image), "pull"), _ACCEPT)
        if answer.status_code == 404:
            return None
        self._check(answer, f"asked for {image}")
        if found := _digest_header(answer):
            return found
        # Some registries leave the header out: the digest is the hash of the manifest's bytes.
        answer = await self._ask("GET", path, _scope(self._path(image), "pull"), _ACCEPT)
        if answer.status_code == 404:
            return None
        self._check(answer, f"asked for {image}")
        if len(answer.content) > _MANIFEST_LIMIT:
            raise RegistryError(f"The registry {self.host} gave a manifest of more than {_MANIFEST_LIMIT} bytes.")
        return _digest_header(answer) or f"sha256:{hashlib.sha256(answer.content).hexdigest()}"

    async def launchable(self, image: ImageName) -> str | None:
        """`name@digest`, or None when there is no such image. Raises RegistryError."""
        digest = await self.digest(image)
        return f"{image.name}@{digest}" if digest else None

    async def delete(self, image: ImageName) -> bool:
        """Delete the manifest that the tag names; False when there was none. Raises RegistryError."""
        digest = await self.digest(image)
        if digest is None:
            return False
        path = self._path(image)
        answer = await self._ask("DELETE", f"{path}/manifests/{digest}", _scope(path, "pull,push,delete"), {})
        if answer.status_code == 404:
            return False
        if answer.status_code == 405:
            raise RegistryError(f"The registry {self.host} does not allow deleting; enable it there.")
        self._check(answer, f"told to delete {image}")
        return True

    async def health(self) -> None:
        """Raises RegistryError when the registry does not answer or refuses our credentials."""
        self._check(await self._ask("GET", "", None, {}), "asked for its version")

    async def aclose(self) -> None:
        await self._client.aclose()

    def _path(self, image: ImageName) -> str:
        """The name below /v2/: without the registry's host; Docker Hub's own images are below `library`."""
        host, slash, path = image.name.partition("/")
        if not slash or host != self.host:
            raise RegistryError(f"{image.name} is not in the registry {self.host}.")
        return path if "/" in path or "docker.io" not in self.host else f"library/{path}"

    async def _ask(
        self,
        method: str,
        path: str,
        scope: str | None,
        headers: dict[str, str],
        content: Content | None = None,
    ) -> httpx.Response:
        """One question, asked again after passing troubles; `content` gives the body anew each time."""
        return await self._attempts(lambda: self._ask_once(method, path, scope, headers, content))

    async def _attempts(self, once: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """The answer to what `once` asks, which is done again after passing troubles. Raises RegistryError."""
        try:
            async for attempt in stamina.retry_context(
                on=(_Again, httpx.TransportError), attempts=_ATTEMPTS, wait_initial=0.1, wait_max=1.0, timeout=None
            ):
                with attempt:
                    answer = await once()
                    if answer.status_code >= 500 or answer.status_code == 429:
                        raise _Again(f"answered {answer.status_code}{_reason(answer)}")
                    return answer
        except httpx.TimeoutException:
            reason = f"did not answer within {self._timeout:.0f} s"
        except httpx.TransportError as error:
            reason = f"cannot be reached ({error or type(error).__name__})"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = f"answered what is not HTTP ({type(error).__name__})"
        except _Again as error:
            raise RegistryError(f"The registry {self.host} {error}. Look at its log and its disk.") from None
        else:  # pragma: no cover - retry_context either returns or raises
            raise AssertionError
        raise RegistryError(f"The registry {self.host} {reason}. Check registry.prefix and that it runs.")

    async def _ask_once(
        self,
        method: str,
        path: str,
        scope: str | None,
        headers: dict[str, str],
        content: Content | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """One question, asked again with what the registry's challenge wants.

        `timeout`, in seconds, is for answers that a registry takes long for.
        """

        async def send() -> httpx.Response:
            return await self._client.request(
                method,
                path,
                headers={**headers, **self._authorization(scope)},
                content=content() if content else None,
                timeout=httpx.Timeout(self._timeout, read=timeout) if timeout else httpx.USE_CLIENT_DEFAULT,
            )

        used = self._tokens.get(scope or "")
        answer = await send()
        if answer.status_code != 401:
            return answer
        if used is not None and self._tokens.get(scope or "") is used:
            del self._tokens[scope or ""]  # it was refused, whatever its end said
        scheme, parameters = parse_challenge(answer.headers.get("WWW-Authenticate", ""))
        if scheme == "bearer":
            await self._fetch_token(parameters, scope)
        elif scheme == "basic" and not self._basic and self._credentials() is not None:
            self._basic = True
        else:
            return answer
        return await send()

    def _authorization(self, scope: str | None) -> dict[str, str]:
        token = self._tokens.get(scope or "")
        if token and token.until > time.monotonic():
            return {"Authorization": f"Bearer {token.value}"}
        if self._basic and (credentials := self._credentials()):
            return {"Authorization": _basic(credentials)}
        return {}

    def _credentials(self) -> Credentials | None:
        """Read anew each time: files of secrets are renewed while we run."""
        return read_credentials(self._config.credentials, self.host) if self._config.credentials else None

    async def _fetch_token(self, challenge: dict[str, str], scope: str | None) -> None:
        """Get a token from the server that the challenge names and keep it until shortly before its end."""
        realm = challenge.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or (parts.scheme == "http" and not self._config.insecure):
            raise RegistryError(f"The registry {self.host} names a token server that is not https; it is not asked.")
        async with self._token_lock:
            held = self._tokens.get(scope or "")
            if held and held.until > time.monotonic():
                return  # somebody else just got it
            wanted = {"service": challenge["service"]} if "service" in challenge else {}
            if scopes := scope or challenge.get("scope"):
                wanted["scope"] = scopes
            answer = await self._request_token(realm, wanted)
        if answer.status_code in (400, 401, 403):
            raise RegistryError(f"The registry {self.host} refuses our credentials. Check registry.credentials.")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Again(f"has a token server that answered {answer.status_code}")
        token = _read_token(answer)
        if token is None:
            raise RegistryError(f"The token server of the registry {self.host} gave no token.")
        self._tokens[scope or ""] = token

    async def _request_token(self, realm: str, wanted: dict[str, str]) -> httpx.Response:
        credentials = self._credentials()
        if credentials and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": "prebinder",
            }
            return await self._client.post(realm, data={**form, **wanted})
        headers = {"Authorization": _basic(credentials)} if credentials else {}
        # One parameter for each scope, as the specification has it for GET.
        query: dict[str, str | list[str]] = {**wanted}
        if "scope" in wanted:
            query["scope"] = wanted["scope"].split(" ")
        return await self._client.get(realm, params=query, headers=headers)

    def _check(self, answer: httpx.Response, what: str) -> None:
        """Raise RegistryError for what is not success."""
        if answer.is_success:
            return
        if answer.status_code in (401, 403):
            advice = (
                "Check registry.credentials."
                if self._config.credentials
                else "Give registry.credentials, a Docker config.json."
            )
            raise RegistryError(f"The registry {self.host} refuses us ({answer.status_code}) when {what}. {advice}")
        raise RegistryError(f"The registry {self.host} answered {answer.status_code} when {what}{_reason(answer)}.")


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Scheme in lower case and parameters of a `WWW-Authenticate` header (RFC 9110); ("", {}) when there is none."""
    scheme, _, rest = header.strip().partition(" ")
    return scheme.lower(), {key.lower(): value for key, value in _CHALLENGE.findall(rest)}


def _scope(path: str, actions: str) -> str:
    return f"repository:{path}:{actions}"


def _basic(credentials: Credentials) -> str:
    header: str = httpx.BasicAuth(credentials.username, credentials.password)._auth_header
    return header


def _digest_header(answer: httpx.Response) -> str | None:
    value = answer.headers.get("Docker-Content-Digest", "").strip()
    return value if _DIGEST.fullmatch(value) else None


def _read_token(answer: httpx.Response) -> _Token | None:
    try:
        body: Any = answer.json()
        value = body.get("token") or body.get("access_token")
        seconds = max(float(body.get("expires_in") or _TOKEN_SECONDS), _TOKEN_SECONDS)
    except (ValueError, AttributeError, TypeError):
        return None
    if not isinstance(value, str) or not value:
        return None
    return _Token(value, time.monotonic() + seconds - _TOKEN_MARGIN)


def _reason(answer: httpx.Response) -> str:
    """What the registry says of an error (distribution specification, "Error codes"), short."""
    try:
        error = answer.json()["errors"][0]
        said = str(error.get("message") or error.get("code"))[:200]
        # The distribution project's registry: the system's words, or its number. Paths of its machine are not for all.
        full = re.search(rf"no space left on device|'Err': {errno.ENOSPC}\b", str(error.get("detail")))
        return ": it has no room left" if full else f": {said}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
