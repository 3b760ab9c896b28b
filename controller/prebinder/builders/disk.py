"""How much disk a running build uses: its work folder, and the layers that its containers write.

podman keeps the writable layer of a build step in `<storage>/overlay/<id>/diff`. Which layer is whose is read from the
processes below the build (the root mount of each, proc(5)), so that builds side by side are not blamed for each other.
A layer counts on after its step has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import ClassVar

import psutil

from prebinder.mounts import mounts

_ROOT = Path("/")
_UPPER = re.compile(r"upperdir=(?:[^,]*/)?([0-9a-f]{64})/diff")


class MachineFull(Exception):
    """The machine's disk is nearly full, whoever filled it."""

    FLOOR: ClassVar[int] = 200 * 10**6

    def __str__(self) -> str:
        return "The disk of the machine that builds is full. Free space on it."


class Usage:
    """Measures one build. Blocking: call it in a thread."""

    def __init__(self, folder: Path, storage: Path | None, pid: int) -> None:
        self._folder = folder
        self._storage = storage
        self._pid = pid
        self._layers: dict[str, int] = {}

    def measure(self) -> int:
        """Bytes used now. Raises MachineFull when the disk has hardly any room left."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._storage or self._folder).free < MachineFull.FLOOR:
                raise MachineFull
        for layer in self._written():
            self._layers.setdefault(layer, 0)
        if self._storage is not None:
            for layer, before in self._layers.items():
                # A layer that is gone was committed as another of the same size.
                self._layers[layer] = max(before, tree_size(self._storage / "overlay" / layer / "diff"))
        return tree_size(self._folder) + sum(self._layers.values())

    def _written(self) -> set[str]:
        """Ids of the layers that processes below the build have as their root."""
        found = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._pid).children(recursive=True):
                with contextlib.suppress(OSError):
                    for mount in mounts(process.pid):
                        if mount.point == _ROOT and (upper := _UPPER.search(mount.text)):
                            found.add(upper[1])
        return found


def tree_size(folder: Path) -> int:
    """Bytes of disk below `folder` (blocks, so that sparse files count as what they take); 0 when it is not there."""
    total = 0
    folders = [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
