"""The container that fetches: base image and layer cache from our registry, into a layout that the build reads.

Runs before the build and runs nothing of the repository, so that it may have credentials to read. A registry without
the cache, or without our base image, is no failure: the build goes on without.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import platform
from pathlib import Path

from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.wire import CACHE_TAG, PodOrder
from prebinder.model.failure import RegistryError
from prebinder.pod.layout import (
    JSON_LIMIT,
    OCI_INDEX,
    BadLayout,
    Descriptor,
    ImageParts,
    add_to_index,
    blob_file,
    descriptor,
    parts_of,
    read_json,
)
from prebinder.pod.registry import open_registry
from prebinder.pod.say import report, say
from prebinder.registry.blobs import BlobRegistry

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEXES = frozenset({OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
BASE = "base"
STEPS_LIMIT = 200
_AT_ONCE = 4


def main(order: PodOrder) -> int:
    """Fetch; the exit code."""
    try:
        asyncio.run(fetch(order, Path(wire.FETCHED)))
    except (RegistryError, BadLayout) as error:
        report(wire.PushReport(problem=str(error)))
        return 1
    return 0


async def fetch(order: PodOrder, folder: Path, credentials: Path = Path(wire.CREDENTIALS)) -> None:
    """Fill the layout in `folder`: the base image as `base`, the steps of the cache as `0`, `1`, …

    Raises RegistryError.
    """
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    entries: dict[str, Descriptor] = {}
    name, found = "", None
    async with open_registry(order, credentials) as registry:
        if order.our_base:
            name, reference = split(order.our_base)
            found = await base_manifest(registry, name, reference)
            if found is None:
                raise RegistryError(f"The registry has no base image {order.our_base}. Set builder.base_image.")
            await _image(registry, name, found, folder)
            entries[BASE] = found[0]
        if order.read_cache:
            # The base image is above; steps on another base would be of no use.
            base = {d.digest for d in (await image_parts(registry, name, found[1])).layers} if found else set()
            with contextlib.suppress(RegistryError, BadLayout):
                for number, step in enumerate(await cached_steps(registry, order.image_name)):
                    parts = await image_parts(registry, order.image_name, step[1])
                    if base <= {d.digest for d in parts.layers}:
                        await _image(registry, order.image_name, step, folder)
                        entries[str(number)] = step[0]
    add_to_index(folder, entries)
    if len(entries) > (BASE in entries):
        say("fetching", "Fetched the layers of an earlier build.")


def split(reference: str) -> tuple[str, str]:
    """Name, and tag or digest, of an image reference; `latest` when it has none."""
    name, at, digest = reference.partition("@")
    if at:
        return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name, digest
    head, slash, last = name.rpartition("/")
    base, _, tag = last.partition(":")
    return f"{head}{slash}{base}", tag or "latest"


async def base_manifest(registry: BlobRegistry, name: str, reference: str) -> tuple[Descriptor, bytes] | None:
    """The manifest of an image for this machine's architecture, out of an index where there is one."""
    found = await registry.manifest(name, reference)
    if found is not None and found[0] in _INDEXES:
        wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
        chosen = next(
            (
                entry
                for entry in read_json(found[1], "the index").get("manifests", [])
                if entry.get("platform", {}).get("architecture") == wanted
                and entry.get("platform", {}).get("os") == "linux"
            ),
            None,
        )
        if chosen is None:
            raise RegistryError(f"{name}:{reference} is not for linux/{wanted}.")
        found = await registry.manifest(name, descriptor(chosen).digest)
    if found is None:
        return None
    return _described(*found), found[1]


async def cached_steps(registry: BlobRegistry, name: str) -> list[tuple[Descriptor, bytes]]:
    """The manifests of the steps that the last build of this repository left in the registry."""
    found = await registry.manifest(name, CACHE_TAG)
    if found is None:
        return []
    entries = read_json(found[1], "the index of the cache").get("manifests", [])[:STEPS_LIMIT]
    manifests = await asyncio.gather(*(registry.manifest(name, descriptor(entry).digest) for entry in entries))
    return [(_described(*one), one[1]) for one in manifests if one is not None]


async def image_parts(registry: BlobRegistry, name: str, manifest: bytes) -> ImageParts:
    """Configuration and layers of an image in the registry. Raises RegistryError or BadLayout."""
    config = descriptor(read_json(manifest, "the manifest").get("config") or {})
    content = await registry.read_blob(name, config.digest, JSON_LIMIT)
    return parts_of(manifest, lambda _: content)


async def _image(registry: BlobRegistry, name: str, found: tuple[Descriptor, bytes], folder: Path) -> None:
    described, manifest = found
    value = json.loads(manifest)
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def blob(digest: str) -> None:
        target = blob_file(folder, digest)
        if not target.exists():
            async with at_once:
                await registry.download(name, digest, target)

    wanted = [descriptor(value["config"]), *map(descriptor, value["layers"])]
    await asyncio.gather(*(blob(d) for d in dict.fromkeys(d.digest for d in wanted)))
    blob_file(folder, described.digest).write_bytes(manifest)


def _described(media_type: str, content: bytes) -> Descriptor:
    return Descriptor(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
