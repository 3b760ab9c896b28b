"""Small images as a build leaves them for the container that pushes: an OCI layout, and the steps beside it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebinder.builders.kubernetes.wire import PodOrder
from prebinder.pod.build import FINAL, LAYOUT, STEPS
from prebinder.pod.layout import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, REF_NAME, blob_file


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Layer:
    """A layer with one file."""

    tar: bytes
    blob: bytes

    @property
    def diff_id(self) -> str:
        return sha256(self.tar)

    @property
    def digest(self) -> str:
        return sha256(self.blob)


def layer(text: str, content: bytes | None = None) -> Layer:
    """A layer with the file `<text>.txt`, which holds `text` if nothing else."""
    content = text.encode() if content is None else content
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(f"{text}.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return Layer(packed.getvalue(), gzip.compress(packed.getvalue(), mtime=0))


def configuration(layers: Sequence[Layer], created_by: Sequence[str] = ()) -> bytes:
    value = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        "history": [{"created_by": step} for step in created_by or [one.digest for one in layers]],
    }
    return json.dumps(value).encode()


class Left:
    """What a build left in `folder`; change it to what a build should not leave."""

    def __init__(self, folder: Path, layers: Sequence[Layer], *, known: Sequence[Layer] = ()) -> None:
        """Of the layers in `known` only an empty file is there, as of those that the registry has."""
        self.folder = folder
        self.layout = folder / LAYOUT
        (self.layout / "blobs" / "sha256").mkdir(parents=True)
        self.layers = layers
        described = []
        for one in layers:
            if one in known:
                blob_file(self.layout, one.diff_id).touch()
                described.append({"mediaType": OCI_LAYER_GZIP, "digest": one.diff_id, "size": 0})
            else:
                self.put(one.blob)
                described.append({"mediaType": OCI_LAYER_GZIP, "digest": one.digest, "size": len(one.blob)})
        self.manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": described}
        self.configure(configuration(layers))

    def put(self, content: bytes) -> str:
        digest = sha256(content)
        blob_file(self.layout, digest).write_bytes(content)
        return digest

    def configure(self, config: bytes) -> None:
        """Give the image this configuration."""
        self.manifest["config"] = {"mediaType": OCI_CONFIG, "digest": self.put(config), "size": len(config)}
        self.write()

    def write(self) -> None:
        """Write manifest and index as they are now."""
        body = json.dumps(self.manifest).encode()
        entry = {"mediaType": OCI_MANIFEST, "digest": self.put(body), "size": len(body)}
        index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {REF_NAME: FINAL}}]}
        (self.layout / "index.json").write_text(json.dumps(index))

    def steps(self, configs: Sequence[bytes]) -> None:
        (self.folder / STEPS).mkdir(exist_ok=True)
        for number, config in enumerate(configs):
            (self.folder / STEPS / f"{number}.json").write_bytes(config)


def pod_order(host: str, **changes: Any) -> PodOrder:
    """An order for the registry at `host`."""
    order = {
        "clone_url": "https://github.com/ada/course",
        "revision": "ab" * 20,
        "image_name": f"{host}/binder/ada-course-0a1b2c",
        "image_tag": "ab" * 20,
        "build_pack": "pip",
        "base_image": None,
        "all_providers": False,
        "memory_limit": 10**9,
        "time_limit": 60,
        "log_limit": 10**6,
        "disk_limit": 10**8,
        "processes": 1000,
        "insecure": True,
        "registry_timeout": 10,
        "storage": "vfs",
        "read_cache": True,
        "write_cache": True,
    }
    return PodOrder.model_validate({**order, **changes})
