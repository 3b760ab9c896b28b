"""A builder image whose containers do what the test says, in a second and without repo2docker.

The Job, its pod, its log and its end are real; only what `python3 -m prebinder.pod ROLE` does is a shell script, which
the test writes and which travels in the order's `clone_url`:

    order = scripted_order('case $ROLE in build) log building "Step 1";; push) pushed $DIGEST;; esac')

The script has `ROLE`, `REVISION` and these words: `log PHASE TEXT`, `failed STEP TEXT`, `pushed DIGEST`,
`problem TEXT`. What really runs in a build's pod is tested in test_pod.py, with repo2docker and buildah.

The image is busybox from Debian's packages: 2 MB.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from prebinder.builders.base import BuildOrder
from prebinder.model.images import ImageName
from prebinder.model.spec import git_url
from tests.support.kube import Cluster
from tests.support.pod_scripts import DIGEST, clone_url

__all__ = ["DIGEST", "clone_url", "load_scripted_image", "scripted_image", "scripted_order"]

NAME = "localhost/prebinder-scripted-pod"
_TOOLS = (
    "sh",
    "sed",
    "base64",
    "sleep",
    "cat",
    "echo",
    "printf",
    "seq",
    "yes",
    "head",
    "wget",
    "kill",
    "dd",
    "ls",
    "nc",
)
_PYTHON = """\
#!/bin/sh
ROLE=$3
field() { printf '%s' "$PREBINDER_ORDER" | sed -n "s/.*\\"$1\\":\\"\\([^\\"]*\\)\\".*/\\1/p"; }
REVISION=$(field revision)
log() { printf '{"phase":"%s","message":"%s\\\\n"}\\n' "$1" "$2" >&2; }
failed() { printf '{"failed":{"step":"%s","message":"%s"}}\\n' "$1" "$2" >&2; }
pushed() { printf '{"digest":"%s"}' "$1" > /dev/termination-log; }
problem() { printf '{"problem":"%s"}' "$1" > /dev/termination-log; }
eval "$(field clone_url | sed 's#.*/##; s#_#/#g' | base64 -d)"
"""
_numbers = itertools.count(1)


def scripted_order(script: str, revision: str | None = None, **more: Any) -> BuildOrder:
    """An order whose pod runs the script. Each has another revision, unless told."""
    number = next(_numbers)
    revision = revision or hashlib.sha1(f"{script}{number}".encode(), usedforsecurity=False).hexdigest()
    fields: dict[str, Any] = {
        "id": f"{number:012x}",
        "repository": git_url("https://git.example.org/course.git"),
        "clone_url": clone_url(script),
        "revision": revision,
        "ref": "main",
        "image": ImageName("registry.invalid/binder/course-5f3a1b", revision),
        "build_pack": "pip",
        "base_image": None,
        "push": True,
        "time_limit": 300.0,
        "memory_limit": 64 * 2**20,
        "log_limit": 10**6,
        "disk_limit": 10**8,
        "trusted": True,
    }
    return BuildOrder(**{**fields, **more})


@pytest.fixture(scope="session")
def scripted_image(cluster: Cluster) -> str:
    """The image's name for pods."""
    return load_scripted_image(cluster)


def load_scripted_image(cluster: Cluster) -> str:
    """Make the image and load it onto the nodes; its name for pods."""
    cache = platformdirs.user_cache_path("prebinder") / "images"
    cache.mkdir(parents=True, exist_ok=True)
    tag = hashlib.sha256(_PYTHON.encode() + repr(_TOOLS).encode()).hexdigest()[:12]
    archive = cache / f"scripted-pod-{tag}.tar"
    with (cache / "scripted-pod.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            part = archive.with_suffix(".part")
            part.write_bytes(_docker_archive(_layer(_busybox()), f"{NAME}:{tag}"))
            part.replace(archive)
        return cluster.load_image(archive)


def _busybox() -> bytes:
    if shutil.which("apt-get") is None:
        pytest.skip("the scripted builder image is made from Debian's busybox-static, and there is no apt-get here")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-q", "busybox-static"], cwd=folder, check=True, capture_output=True)
        package = next(Path(folder).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True, capture_output=True)
        return next(p for p in Path(folder).rglob("busybox") if p.is_file() and p.parent.name == "bin").read_bytes()


def _layer(busybox: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("usr", 0o755), ("usr/bin", 0o755), ("tmp", 0o1777), ("etc", 0o755)):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, content in (("bin/busybox", busybox), ("usr/bin/python3", _PYTHON.encode())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
        for tool in _TOOLS:
            entry = tarfile.TarInfo(f"bin/{tool}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def _docker_archive(layer: bytes, name: str) -> bytes:
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    encoded = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        files = (
            (config_name, encoded),
            (f"{digest}/layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        )
        for path, content in files:
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _architecture() -> str:
    said = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    return said.stdout.strip()
