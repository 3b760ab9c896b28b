"""Prebinder's own images in the cluster's registry, built when their content changed.

    def test_it(images: Images) -> None:
        images.prebinder, images.hub, images.server     # `registry/name@sha256:…`

`server` stands for an image that a build made: it has Jupyter Server, and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
import platformdirs
import pytest

from tests.support.kube import Cluster

ROOT = Path(__file__).resolve().parents[2]
_PATH = "prebinder-tests"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_SOURCES = (
    "controller",
    "launcher-site",
    "images",
    "tests/charts/server",
    "tests/charts/postgresql",
    "tests/charts/registry",
    "pyproject.toml",
)


@dataclass(frozen=True)
class Images:
    """What pods of the tests run."""

    registry: str
    """host:port."""
    prebinder: str
    hub: str
    server: str


@dataclass(frozen=True)
class BuildImages:
    """What builds on the cluster need: the builder, and the base image of what it makes."""

    builder: str
    base: str


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> Images:
    """The images, by digest. The first time takes minutes, later on seconds where layers are cached."""
    return images_in(cluster)


def images_in(cluster: Cluster) -> Images:
    """Build and push them, where the cluster's registry does not have them."""
    registry = _registry(cluster)
    server = str(ROOT / "tests/charts/server")
    return Images(registry, **_built(registry, {"prebinder": "prebinder", "hub": "hub", "server": server}))


@pytest.fixture(scope="session")
def build_images(cluster: Cluster) -> BuildImages:
    """What builds need, likewise."""
    return build_images_in(cluster)


def build_images_in(cluster: Cluster) -> BuildImages:
    """The same for builds."""
    return BuildImages(**_built(_registry(cluster), {"builder": "builder", "base": "base"}))


@pytest.fixture(scope="session")
def postgresql_image(cluster: Cluster) -> str:
    """A PostgreSQL that runs as anybody."""
    return _built(_registry(cluster), {"postgresql": str(ROOT / "tests/charts/postgresql")})["postgresql"]


@pytest.fixture(scope="session")
def registry_image(cluster: Cluster) -> str:
    """A registry that runs as anybody."""
    return _built(_registry(cluster), {"registry": str(ROOT / "tests/charts/registry")})["registry"]


def _registry(cluster: Cluster) -> str:
    if cluster.registry is None:
        reason = "KUBE_REGISTRY names no registry that nodes, pods and this machine reach"
        if os.environ.get("PREBINDER_TEST_EVERYTHING") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return cluster.registry


def _built(registry: str, sources: dict[str, str]) -> dict[str, str]:
    """Build and push what the registry does not have; name to reference by digest."""
    folder = platformdirs.user_cache_path("prebinder") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tag = _key()
        missing = [source for name, source in sources.items() if not digest(registry, f"{_PATH}/{name}", tag)]
        if missing:
            command = [sys.executable, str(ROOT / "images/build.py"), *missing, "--tag", tag, "--insecure"]
            command += ["--push", f"{registry}/{_PATH}/", "--storage", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
            assert done.returncode == 0, done.stderr[-3000:]
    return {name: f"{registry}/{_PATH}/{name}@{digest(registry, f'{_PATH}/{name}', tag)}" for name in sources}


def digest(registry: str, name: str, tag: str) -> str | None:
    """Digest of an image, or None when there is none."""
    answer = httpx.head(f"http://{registry}/v2/{name}/manifests/{tag}", headers={"accept": _MANIFEST}, timeout=30)
    return answer.headers["docker-content-digest"] if answer.is_success else None


def copy(registry: str, image: str, name: str, tag: str) -> str:
    """Give an image (`registry/name@digest`) a further name in the same registry, as a build would have pushed it.

    Returns its digest. Layers are mounted, not moved (OCI distribution specification, "mounting a blob").
    """
    source, _, at = image.removeprefix(f"{registry}/").partition("@")
    with httpx.Client(base_url=f"http://{registry}/v2/", timeout=60) as http:
        manifest = http.get(f"{source}/manifests/{at}", headers={"accept": _MANIFEST}).raise_for_status()
        content = manifest.json()
        for blob in (content["config"], *content["layers"]):
            where = {"mount": blob["digest"], "from": source}
            http.post(f"{name}/blobs/uploads/", params=where).raise_for_status()
        headers = {"content-type": manifest.headers["content-type"]}
        put = http.put(f"{name}/manifests/{tag}", content=manifest.content, headers=headers).raise_for_status()
        return str(put.headers["docker-content-digest"])


def forget(registry: str, prefix: str) -> None:
    """Delete the images whose name begins so, as far as the registry lets us."""
    with httpx.Client(base_url=f"http://{registry}/v2/", timeout=60, headers={"accept": _MANIFEST}) as http:
        for name in http.get("_catalog", params={"n": 1000}).json()["repositories"]:
            if name.startswith(prefix):
                for tag in http.get(f"{name}/tags/list").json().get("tags") or ():
                    if at := digest(registry, name, tag):
                        http.delete(f"{name}/manifests/{at}")


def _key() -> str:
    """Changes with what goes into the images."""
    found = hashlib.sha256()
    for path in _files(ROOT / source for source in _SOURCES):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _files(places: Iterable[Path]) -> list[Path]:
    everything = [p for place in places for p in ([place] if place.is_file() else place.rglob("*"))]
    return sorted(p for p in everything if p.is_file() and "__pycache__" not in p.parts)
