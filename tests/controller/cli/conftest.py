"""Folders for sockets whose own path would be too long lie outside the test's folder: removed here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prebinder.config.state import StateFolder
from prebinder.onemachine.place import Place


@pytest.fixture(autouse=True)
def _sockets_elsewhere(tmp_path: Path) -> Iterator[None]:
    yield
    for root in (tmp_path / ".prebinder", tmp_path / "disk" / "state"):
        for folder in (StateFolder(root).run, Place.of(root).socket.parent):
            if not folder.is_relative_to(tmp_path):
                shutil.rmtree(folder, ignore_errors=True)
