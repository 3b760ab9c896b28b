"""The container that pushes: checks what the build left and puts it into the registry.

Runs nothing of the repository, and is the only one with the credentials to push. What it reads is untrusted
(`layout.py`); what it pushes it has checked: each layer's bytes have the digest that the manifest names, and the digest
of the tar in it that the configuration names. The tag is written last, so that no half image ever has it.

Then it writes the layer cache: the steps that led to the image, as an index with the tag `buildcache` beside it. They
consist of the image's own layers, so that only their configurations are new.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.wire import CACHE_TAG, PodOrder, PushReport
from prebinder.model.failure import PrebinderError, RegistryError
from prebinder.pod.build import FINAL, LAYOUT, STEPS
from prebinder.pod.fetch import STEPS_LIMIT, base_manifest, cached_steps, image_parts, split
from prebinder.pod.layout import (
    JSON_LIMIT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    BadLayout,
    Descriptor,
    ImageParts,
    Layout,
    chunks,
    diff_ids_of,
)
from prebinder.pod.registry import open_registry
from prebinder.pod.say import report, say
from prebinder.registry.blobs import BlobRegistry

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Known:
    """A layer that the registry has."""

    layer: Descriptor
    name: str
    """The image in whose repository it is."""


def main(order: PodOrder) -> int:
    """Push; the exit code."""
    try:
        digest = asyncio.run(push(order, Path(wire.IMAGE)))
    except BadLayout as error:
        report(PushReport(problem=f"What was built is no image that can be pushed: {error}.", repository_fault=True))
        return 1
    except PrebinderError as error:
        report(PushReport(problem=str(error)))
        return 1
    report(PushReport(digest=digest))
    return 0


async def push(order: PodOrder, folder: Path, credentials: Path = Path(wire.CREDENTIALS)) -> str:
    """Push the image in `folder`; its digest. Raises BadLayout or RegistryError."""
    layout = Layout(folder / LAYOUT)
    parts = layout.image(FINAL)
    say("pushing", f"Pushing {order.image}")
    async with open_registry(order, credentials) as registry:
        known = await _known(registry, order)
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(layer: Descriptor, diff_id: str) -> Descriptor:
            async with at_once:
                return await _layer(registry, order, layout, known, layer, diff_id)

        layers = await asyncio.gather(*(one(*pair) for pair in zip(parts.layers, parts.diff_ids, strict=True)))
        digest = (await _image(registry, order.image_name, order.image_tag, parts.config, layers)).digest
        say("pushing", f"Pushed {order.image_name}@{digest}")
        if order.write_cache:
            try:
                await _write_cache(registry, order, folder / STEPS, parts, layers)
            except (BadLayout, RegistryError) as error:
                # The image is there; the next build takes longer.
                say("pushing", f"The layer cache was not written: {error}")
    return digest


async def _known(registry: BlobRegistry, order: PodOrder) -> dict[str, _Known]:
    """The layers of the base image and of the cache, by the digest of their tar."""
    known: dict[str, _Known] = {}

    def learn(parts: ImageParts, name: str) -> None:
        for layer, diff_id in zip(parts.layers, parts.diff_ids, strict=True):
            known.setdefault(diff_id, _Known(layer, name))

    if order.read_cache:
        try:
            steps = await cached_steps(registry, order.image_name)
            for _, manifest in steps[-1:] if steps else ():
                learn(await image_parts(registry, order.image_name, manifest), order.image_name)
        except (RegistryError, BadLayout):
            known.clear()
    if order.our_base:
        name, reference = split(order.our_base)
        if found := await base_manifest(registry, name, reference):
            learn(await image_parts(registry, name, found[1]), name)
    return known


async def _layer(
    registry: BlobRegistry,
    order: PodOrder,
    layout: Layout,
    known: dict[str, _Known],
    layer: Descriptor,
    diff_id: str,
) -> Descriptor:
    """See to it that the registry has a layer; the descriptor to name it by."""
    size = layout.size(layer.digest)
    if size:
        await asyncio.to_thread(check_layer, layout, layer, diff_id, order.disk_limit)
        real = Descriptor(layer.media_type, layer.digest, size)
        if not await registry.has_blob(order.image_name, real.digest):
            await registry.upload(order.image_name, real.digest, size, lambda: _content(layout, real.digest))
        return real
    there = known.get(diff_id)
    if there is None:
        raise RegistryError(f"The layer {diff_id} was taken from the registry, which no longer has it.")
    real = there.layer
    if not await registry.has_blob(order.image_name, real.digest) and not await registry.mount(
        order.image_name, real.digest, there.name
    ):
        raise RegistryError(
            f"The registry {order.registry} does not let {order.image_name} use the layers of {there.name}. "
            "Set builder.base_image to an image that may be mounted from."
        )
    return real


def check_layer(layout: Layout, layer: Descriptor, diff_id: str, most: int) -> None:
    """Raises BadLayout unless the blob is what manifest and configuration say; `most` bounds its tar."""
    if layer.media_type not in (OCI_LAYER, OCI_LAYER_GZIP):
        raise BadLayout("a layer has a form that is not known here")
    whole, tar, length = hashlib.sha256(), hashlib.sha256(), 0
    unzip = zlib.decompressobj(31) if layer.media_type == OCI_LAYER_GZIP else None
    with layout.open_blob(layer.digest) as file:
        for chunk in chunks(file):
            whole.update(chunk)
            if unzip is None:
                tar.update(chunk)
                continue
            try:
                rest = chunk
                while rest:
                    piece = unzip.decompress(rest, 2**20)
                    length += len(piece)
                    tar.update(piece)
                    rest = unzip.unconsumed_tail
                    if length > most:
                        raise BadLayout("a layer is larger than the disk that a build may use")
                    if unzip.eof:  # gzip's members may follow each other
                        rest, unzip = unzip.unused_data, zlib.decompressobj(31)
            except zlib.error:
                raise BadLayout("a layer is not gzip") from None
    if f"sha256:{whole.hexdigest()}" != layer.digest or f"sha256:{tar.hexdigest()}" != diff_id:
        raise BadLayout("a layer has other content than its digest says")


async def _content(layout: Layout, digest: str) -> AsyncIterator[bytes]:
    with ExitStack() as stack:
        file = stack.enter_context(layout.open_blob(digest))
        while chunk := await asyncio.to_thread(file.read, 2**20):
            yield chunk


async def _image(
    registry: BlobRegistry, name: str, reference: str | None, config: bytes, layers: Sequence[Descriptor]
) -> Descriptor:
    """Push configuration and manifest, by its digest when there is no tag; the manifest's descriptor."""
    described = Descriptor(OCI_CONFIG, _digest(config), len(config))
    if not await registry.has_blob(name, described.digest):
        await registry.upload(name, described.digest, len(config), lambda: _bytes(config))
    body = _json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    digest = await registry.put_manifest(name, reference or _digest(body), OCI_MANIFEST, body)
    return Descriptor(OCI_MANIFEST, digest, len(body))


async def _write_cache(
    registry: BlobRegistry, order: PodOrder, folder: Path, parts: ImageParts, layers: Sequence[Descriptor]
) -> None:
    read = Layout(folder)
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def step(config: bytes) -> dict[str, Any]:
        diff_ids = diff_ids_of(config)
        if parts.diff_ids[: len(diff_ids)] != diff_ids:
            raise BadLayout("a step is not part of the image")
        async with at_once:
            return (await _image(registry, order.image_name, None, config, layers[: len(diff_ids)])).to_json()

    configs = []
    for number in range(STEPS_LIMIT):
        try:
            with read.open(f"{number}.json") as file:
                configs.append(file.read(JSON_LIMIT))
        except FileNotFoundError:
            break
    entries = await asyncio.gather(*map(step, configs))
    body = _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    await registry.put_manifest(order.image_name, CACHE_TAG, OCI_INDEX, body)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def _bytes(content: bytes) -> AsyncIterator[bytes]:
    yield content
