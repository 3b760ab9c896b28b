"""The container engine's own store as the place where images are kept: one machine, no registry.

Asked over the engine's socket in Docker's HTTP API, which podman serves too (`GET /images/{name}/json`: 404 when there
is none; `Id` is the digest of the image's configuration, here the image's digest).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import httpx

from prebinder.model.failure import RegistryError
from prebinder.model.images import ImageName

_TIMEOUT = 10.0


class EngineStore:
    """The store of the engine that listens on `socket`."""

    pushes = False

    def __init__(self, socket: Path, *, timeout: float = _TIMEOUT) -> None:
        self._socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket), retries=1), base_url="http://engine", timeout=timeout
        )

    async def digest(self, image: ImageName) -> str | None:
        """The image's id (`sha256:…`), or None. Raises RegistryError."""
        answer = await self._ask("GET", f"/images/{_quoted(image)}/json")
        if answer.status_code == 404:
            return None
        self._check(answer)
        try:
            found = str(answer.json()["Id"])
        except (ValueError, LookupError, TypeError):
            raise RegistryError("The container engine gave an answer that is not an image's description.") from None
        return found if found.startswith("sha256:") else f"sha256:{found}"

    async def launchable(self, image: ImageName) -> str | None:
        """`name:tag`, or None when the store has no such image. Raises RegistryError."""
        return str(image) if await self.digest(image) else None

    async def delete(self, image: ImageName) -> bool:
        """Take away the tag, and the layers that nothing else needs; servers that run on it go on.

        False when there was none. Raises RegistryError.
        """
        answer = await self._ask("DELETE", f"/images/{_quoted(image)}")
        if answer.status_code == 404:
            return False
        if answer.status_code == 409:
            raise RegistryError(f"The image {image} is used by a running server and is kept.")
        self._check(answer)
        return True

    async def health(self) -> None:
        """Raises RegistryError when the engine does not answer."""
        self._check(await self._ask("GET", "/_ping"))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, path: str) -> httpx.Response:
        try:
            return await self._client.request(method, path)
        except httpx.HTTPError as error:
            raise RegistryError(
                f"The container engine does not answer on {self._socket} ({type(error).__name__}). Is it running?"
            ) from None

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            raise RegistryError(f"The container engine answered {answer.status_code}: {answer.text[:200].strip()}")


def _quoted(image: ImageName) -> str:
    return quote(str(image), safe="/:")
