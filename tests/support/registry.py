"""A real OCI registry (Debian's `docker-registry`) on a free port of 127.0.0.1, and small images to put into it.

from tests.support.registry import registry              # fixture: open to all, deleting allowed

with running_registry(tmp_path, auth=...) as registry:    # htpasswd or token authentication
    registry.host                                         # 127.0.0.1:…
    registry.put("course", "v1")                          # digest of a small image that is now there
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

# "ada:secret", bcrypt as docker-registry wants it (cost 4: tests need not wait).
HTPASSWD = "ada:$2b$04$QoVI2QJsFyT9oXwhCM0T9unK3Ukz8Id1SxSkvK1pLIJOvP9QN.aVq\n"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Registry:
    """A running registry."""

    host: str
    headers: Mapping[str, str]

    def put(self, name: str, tag: str, kind: str = OCI_MANIFEST) -> str:
        """Push a tiny image; its digest. `kind` is the manifest's media type; an index holds one image."""
        config = json.dumps({"name": name, "tag": tag}).encode()
        descriptor = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": len(config),
            "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
        }
        with httpx.Client(base_url=f"http://{self.host}/v2/{name}/", headers=dict(self.headers), timeout=10) as client:
            place = client.post("blobs/uploads/").raise_for_status().headers["Location"]
            upload = httpx.URL(place).copy_merge_params({"digest": descriptor["digest"]})
            client.put(upload, content=config).raise_for_status()
            manifest: dict[str, Any] = {"schemaVersion": 2, "mediaType": kind, "config": descriptor, "layers": []}
            if kind == OCI_INDEX:
                body = json.dumps({**manifest, "mediaType": OCI_MANIFEST}).encode()
                digest = self._put_manifest(client, f"{tag}-one", OCI_MANIFEST, body)
                one = {"mediaType": OCI_MANIFEST, "size": len(body), "digest": digest}
                manifest = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one]}
            elif kind == DOCKER_MANIFEST:
                descriptor["mediaType"] = "application/vnd.docker.container.image.v1+json"
            return self._put_manifest(client, tag, kind, json.dumps(manifest).encode())

    @staticmethod
    def _put_manifest(client: httpx.Client, tag: str, kind: str, body: bytes) -> str:
        answer = client.put(f"manifests/{tag}", content=body, headers={"Content-Type": kind}).raise_for_status()
        return str(answer.headers["Docker-Content-Digest"])


@contextlib.contextmanager
def running_registry(
    folder: Path,
    auth: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    address: str = "127.0.0.1",
) -> Iterator[Registry]:
    """A registry that keeps everything below `folder`; `auth` is that section of its configuration."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed; `make test` installs it where it may")
    folder.mkdir(parents=True, exist_ok=True)
    # No `cache`: with one, deleting and pushing again may lose blobs.
    configuration = {
        "version": "0.1",
        "log": {"level": "info", "formatter": "json"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": f"{address}:0"},
        **({"auth": auth} if auth else {}),
    }
    file = folder / "registry.yml"
    # JSON is YAML.
    file.write_text(json.dumps(configuration))
    process = subprocess.Popen([program, "serve", file], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    listens: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if not listens and (found := re.search(rf"listening on ({re.escape(address)}:\d+)", line)):
                listens.append(found[1])
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(30)
        assert listens, "docker-registry did not start"
        yield Registry(listens[0], headers or {})
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that lets everybody do everything."""
    with running_registry(tmp_path / "registry") as running:
        yield running
