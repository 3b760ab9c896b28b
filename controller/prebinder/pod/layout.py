"""An OCI image layout (image-spec 1.1, "image-layout") on disk: written where we trust, read where we do not.

Reading guarantees, whatever another container put there: no link is followed, only regular files are opened, JSON is
bounded in size and shape, a blob's bytes have the digest by which they were asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

REF_NAME = "org.opencontainers.image.ref.name"
JSON_LIMIT = 8 * 2**20
_LAYERS = 1000
_CHUNK = 2**20
_OCI_TYPES = {DOCKER_LAYER_GZIP: OCI_LAYER_GZIP}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BadLayout(Exception):
    """What stands there is not an image; the message is for people."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class ImageParts:
    """One image: its configuration, and its layers from the bottom up, each with the digest of its tar."""

    config: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]


class Layout:
    """A layout that somebody else wrote."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def image(self, name: str) -> ImageParts:
        """The image of that name. Raises BadLayout."""
        index = self._json(self._read("index.json"), "index.json")
        for entry in _list(index, "manifests"):
            if isinstance(entry, dict) and _mapping(entry, "annotations").get(REF_NAME) == name:
                manifest = self.blob(descriptor(entry).digest, JSON_LIMIT)
                return parts_of(manifest, lambda digest: self.blob(digest, JSON_LIMIT))
        raise BadLayout("there is no image in it")

    def blob(self, digest: str, most: int) -> bytes:
        """A small blob, whole and checked."""
        content = self._read(*_path(digest), most=most)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise BadLayout(f"the blob {digest} has other content")
        return content

    def size(self, digest: str) -> int:
        """Bytes of a blob; 0 when it is not there."""
        try:
            with self.open(*_path(digest)) as file:
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[IO[bytes]]:
        """A blob's file; its content is not checked."""
        with self.open(*_path(digest)) as file:
            yield file

    @contextmanager
    def open(self, *path: str) -> Iterator[IO[bytes]]:
        """A regular file below the folder, reached through no link. Raises BadLayout or FileNotFoundError."""
        folders = []
        try:
            folders.append(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))
            for part in path[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                folders.append(os.open(part, flags, dir_fd=folders[-1]))
            # O_NONBLOCK: a pipe that somebody put there must not hold us.
            number = os.open(path[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folders[-1])
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BadLayout(f"{'/'.join(path)} is not a plain file: {error.strerror}") from None
        finally:
            for folder in folders:
                os.close(folder)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise BadLayout(f"{'/'.join(path)} is not a plain file")
            yield file

    def _read(self, *path: str, most: int = JSON_LIMIT) -> bytes:
        try:
            with self.open(*path) as file:
                content = file.read(most + 1)
        except FileNotFoundError:
            raise BadLayout(f"{'/'.join(path)} is missing") from None
        if len(content) > most:
            raise BadLayout(f"{'/'.join(path)} is larger than {most} bytes")
        return content

    @staticmethod
    def _json(content: bytes, what: str) -> dict[str, Any]:
        return read_json(content, what)


def read_json(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises BadLayout."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise BadLayout(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise BadLayout(f"{what} is not a JSON object")
    return value


def descriptor(value: Mapping[str, Any]) -> Descriptor:
    """A blob, its type as OCI calls it. Raises BadLayout."""
    media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BadLayout("a digest is not a SHA-256 digest")
    if not isinstance(size, int) or size < 0 or not isinstance(media_type, str):
        raise BadLayout("a descriptor has no size or type")
    return Descriptor(_OCI_TYPES.get(media_type, media_type), digest, size)


def parts_of(manifest: bytes, read: Any) -> ImageParts:
    """What a manifest's bytes name; `read` gives the configuration by its digest. Raises BadLayout."""
    value = read_json(manifest, "the manifest")
    config = read(descriptor(_mapping(value, "config")).digest)
    layers = tuple(descriptor(entry) for entry in _list(value, "layers") if isinstance(entry, dict))
    diff_ids = diff_ids_of(config)
    if len(layers) != len(diff_ids):
        raise BadLayout("manifest and configuration name different numbers of layers")
    return ImageParts(config, layers, diff_ids)


def diff_ids_of(config: bytes) -> tuple[str, ...]:
    """The digests of the layers' tars, from an image's configuration. Raises BadLayout."""
    rootfs = _mapping(read_json(config, "the configuration"), "rootfs")
    found = _list(rootfs, "diff_ids")
    if len(found) > _LAYERS or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in found):
        raise BadLayout("the configuration names no layers that could be")
    return tuple(found)


def add_to_index(folder: Path, entries: Mapping[str, Descriptor]) -> None:
    """Write `index.json` and `oci-layout` of a layout of ours: names to manifests."""
    manifests = [{**d.to_json(), "annotations": {REF_NAME: name}} for name, d in entries.items()]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def blob_file(folder: Path, digest: str) -> Path:
    """Where a blob is in a layout of ours."""
    return folder.joinpath(*_path(digest))


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """A file's content, a megabyte at a time."""
    while chunk := file.read(_CHUNK):
        yield chunk


def _path(digest: str) -> tuple[str, str, str]:
    if not _DIGEST.fullmatch(digest):
        raise BadLayout("a digest is not a SHA-256 digest")
    return "blobs", "sha256", digest.removeprefix("sha256:")


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list):
        raise BadLayout(f"it has no {key}")
    return found


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}
