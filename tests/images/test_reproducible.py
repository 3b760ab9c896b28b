"""The container images, as an operator builds them: the same commit gives the same image, for an ordinary user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def build(folder: Path) -> dict[str, Any]:
    """The configuration of the image, which names its layers by their content; built with nothing cached."""
    storage = folder / "storage"
    command = [sys.executable, "images/build.py", "prebinder", "--storage", str(storage), "--archive", str(folder)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        with tarfile.open(folder / "prebinder.tar") as archive:
            manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]  # it is a file
            found: dict[str, Any] = json.load(archive.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
        return found
    finally:
        (folder / "prebinder.tar").unlink(missing_ok=True)
        shutil.rmtree(storage, ignore_errors=True)


def test_the_same_commit_gives_the_same_image_which_runs_as_an_ordinary_user(tmp_path: Path) -> None:
    if shutil.which("buildah") is None and shutil.which("podman") is None:
        pytest.skip("neither buildah nor podman is installed")
    first = build(tmp_path / "first")
    assert first == build(tmp_path / "second")
    assert first["config"]["User"] == "65532:65532"
    assert not first["config"].get("Volumes")
