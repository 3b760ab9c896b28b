"""The container that fetches: base image and layer cache from our registry, into a layout that the build reads.

Runs before the build and runs nothing of the repository, so that it may have credentials to read. A registry without
the cache, or without our base image, is no failure: the build goes on without.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.wire import CACHE_TAG, PodOrder
from prebinder.model.failure import RegistryError
from prebinder.pod.layout import (
    JSON_LIMIT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    BadLayout,
    Descriptor,
    ImageParts,
    add_to_index,
    blob_file,
    descriptor,
    diff_ids_of,
    parts_of,
    read_json,
)
from prebinder.pod.registry import open_registry
from prebinder.pod.say import report, say
from prebinder.pod.store import begins_with, preloaded
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
    held = preloaded() if order.storage == "overlay" else None
    entries: dict[str, Descriptor] = {}
    base: tuple[str, ...] = diff_ids_of(held) if held and order.base_image is None and order.build_pack == "pip" else ()
    async with open_registry(order, credentials) as registry:
        if order.our_base:
            name, reference = split(order.our_base)
            found = await base_manifest(registry, name, reference)
            if found is None:
                raise RegistryError(f"The registry has no base image {order.our_base}. Set builder.base_image.")
            parts = await image_parts(registry, name, found[1])
            base = parts.diff_ids
            entries[BASE] = await _image(registry, name, parts, folder, there=base if parts.config == held else ())
        if order.read_cache:
            # The base image is in the storage by then; steps on another base are of no use.
            try:
                for number, (_, manifest) in enumerate(await cached_steps(registry, order.image_name)):
                    parts = await image_parts(registry, order.image_name, manifest)
                    if begins_with(parts.diff_ids, base):
                        entries[str(number)] = await _image(registry, order.image_name, parts, folder, there=base)
            except (RegistryError, BadLayout) as error:
                say("fetching", f"The layers of earlier builds cannot be used: {error}")
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


async def _image(
    registry: BlobRegistry, name: str, parts: ImageParts, folder: Path, *, there: Sequence[str]
) -> Descriptor:
    """Write an image into the layout, but for its first layers in `there`: buildah finds them in its storage by the
    digest of their tar."""
    layers = [
        Descriptor(OCI_LAYER, diff_id, 0) if number < len(there) else layer
        for number, (layer, diff_id) in enumerate(zip(parts.layers, parts.diff_ids, strict=True))
    ]
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def blob(layer: Descriptor) -> None:
        target = blob_file(folder, layer.digest)
        if not target.exists():
            async with at_once:
                await registry.download(name, layer.digest, target)

    await asyncio.gather(*(blob(layer) for layer in dict.fromkeys(layers[len(there) :])))
    config = Descriptor(OCI_CONFIG, _write(folder, parts.config), len(parts.config))
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    manifest = json.dumps(body).encode()
    return Descriptor(OCI_MANIFEST, _write(folder, manifest), len(manifest))


def _write(folder: Path, content: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob_file(folder, digest).write_bytes(content)
    return digest


def _described(media_type: str, content: bytes) -> Descriptor:
    return Descriptor(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
