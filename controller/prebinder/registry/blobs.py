"""An OCI registry's blobs and manifests, for the containers of a build's pod that fetch and push.

Source: OCI distribution specification 1.1 ("Pulling blobs", "Pushing a blob monolithically", "Mounting a blob from
another repository", "Pushing manifests"). Guarantees beyond `oci.py`'s:
- What is downloaded has the digest by which it was asked for, or is not kept.
- A manifest counts as pushed when the registry gives back the very bytes.
- Credentials go to the registry's own host only, also when it names another for an upload.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import httpx

from prebinder.model.failure import RegistryError
from prebinder.model.images import ImageName
from prebinder.registry.oci import MANIFEST_TYPES, OCIRegistry

_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_MANIFEST_LIMIT = 4 * 2**20
# A registry checks and moves a large blob before it answers.
_UPLOAD_SECONDS = 600.0


class BlobRegistry(OCIRegistry):
    """Names are those of images, with the registry's host."""

    async def manifest(self, name: str, reference: str) -> tuple[str, bytes] | None:
        """Media type and bytes of a manifest or index, by tag or digest; None when there is none.

        Raises RegistryError, also when a digest's manifest has other bytes.
        """
        path = self._repository(name)
        answer = await self._ask("GET", f"{path}/manifests/{reference}", f"repository:{path}:pull", _ACCEPT)
        if answer.status_code == 404:
            return None
        self._check(answer, f"asked for {name}:{reference}")
        if len(answer.content) > _MANIFEST_LIMIT:
            raise RegistryError(f"The registry {self.host} gave a manifest of more than {_MANIFEST_LIMIT} bytes.")
        if reference.startswith("sha256:") and _digest(answer.content) != reference:
            raise RegistryError(f"The registry {self.host} gave another manifest than {reference}.")
        return answer.headers.get("Content-Type", "").partition(";")[0], answer.content

    async def has_blob(self, name: str, digest: str) -> bool:
        """Whether the repository has the blob. Raises RegistryError."""
        path = self._repository(name)
        answer = await self._ask("HEAD", f"{path}/blobs/{digest}", f"repository:{path}:pull", {})
        if answer.status_code == 404:
            return False
        if not answer.is_redirect:
            self._check(answer, f"asked for a layer of {name}")
        return True

    async def download(self, name: str, digest: str, target: Path) -> None:
        """Write a blob to `target`, whole or not at all. Raises RegistryError."""
        path = self._repository(name)
        await self.has_blob(name, digest)  # logs in where needed
        part = target.with_name(f"{target.name}.part")
        found = hashlib.sha256()
        headers = self._authorization(f"repository:{path}:pull")
        try:
            # Registries hand large blobs on to a storage; httpx keeps our credentials from other hosts.
            async with self._client.stream(
                "GET", f"{path}/blobs/{digest}", headers=headers, follow_redirects=True
            ) as answer:
                if not answer.is_success:
                    await answer.aread()
                self._check(answer, f"asked for a layer of {name}")
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes(2**20):
                        found.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            part.unlink(missing_ok=True)
            raise RegistryError(f"The registry {self.host} broke off: {error or type(error).__name__}.") from None
        if f"sha256:{found.hexdigest()}" != digest:
            part.unlink()
            raise RegistryError(f"The registry {self.host} gave other content than {digest}.")
        part.replace(target)

    async def read_blob(self, name: str, digest: str, most: int) -> bytes:
        """A small blob (a configuration), checked. Raises RegistryError, also when it is larger than `most`."""
        path = self._repository(name)
        answer = await self._ask("GET", f"{path}/blobs/{digest}", f"repository:{path}:pull", {})
        if answer.is_redirect:
            try:
                answer = await self._client.get(answer.url.join(answer.headers["Location"]), follow_redirects=True)
            except httpx.HTTPError as error:
                raise RegistryError(f"The registry {self.host} broke off: {error or type(error).__name__}.") from None
        self._check(answer, f"asked for the configuration of {name}")
        if len(answer.content) > most or _digest(answer.content) != digest:
            raise RegistryError(f"The registry {self.host} gave other content than {digest}.")
        return answer.content

    async def mount(self, name: str, digest: str, source: str) -> bool:
        """Take over a blob from another repository of the registry, without copying; False when it does not do that.

        Raises RegistryError.
        """
        path, other = self._repository(name), self._repository(source)
        answer = await self._ask(
            "POST",
            f"{path}/blobs/uploads/?mount={quote(digest)}&from={quote(other, safe='')}",
            f"repository:{path}:pull,push repository:{other}:pull",
            {"Content-Length": "0"},
        )
        if answer.status_code == 202:
            return False
        self._check(answer, f"told to mount a layer of {source}")
        return answer.status_code == 201

    async def upload(self, name: str, digest: str, size: int, content: Callable[[], AsyncIterator[bytes]]) -> None:
        """Push a blob of `size` bytes; `content` gives them, anew for each attempt. Raises RegistryError."""
        path = self._repository(name)
        scope = f"repository:{path}:pull,push"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}

        async def once() -> httpx.Response:
            # What went wrong in mid-upload ended the upload: another attempt is another upload.
            begun = await self._ask_once("POST", f"{path}/blobs/uploads/", scope, {"Content-Length": "0"})
            if not begun.is_success:
                return begun
            place = begun.url.join(begun.headers.get("Location", "")).copy_merge_params({"digest": digest})
            if place.host == begun.url.host and (place.scheme, place.port) != (begun.url.scheme, begun.url.port):
                raise RegistryError(
                    f"The registry {self.host} sends uploads to {place.scheme}://{place.netloc.decode()}, which gets "
                    "no credentials. Its proxy must tell it how it was asked (X-Forwarded-Proto, Host)."
                )
            if place.host == begun.url.host:
                return await self._ask_once("PUT", str(place), scope, headers, content, _UPLOAD_SECONDS)
            return await self._client.put(place, headers=headers, content=content(), timeout=_UPLOAD_SECONDS)

        self._check(await self._attempts(once), f"given a layer of {name}")

    async def put_manifest(self, name: str, reference: str, media_type: str, body: bytes) -> str:
        """Push a manifest or index and look at it again; its digest. Raises RegistryError."""
        path = self._repository(name)
        digest = _digest(body)
        answer = await self._ask(
            "PUT",
            f"{path}/manifests/{reference}",
            f"repository:{path}:pull,push",
            {"Content-Type": media_type},
            lambda: body,
        )
        self._check(answer, f"given the manifest of {name}:{reference}")
        kept = await self.manifest(name, reference)
        if kept is None or _digest(kept[1]) != digest:
            raise RegistryError(
                f"The registry {self.host} shows another image under {name}:{reference} than the one just pushed."
            )
        return digest

    def _repository(self, name: str) -> str:
        return self._path(ImageName(name, ""))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
