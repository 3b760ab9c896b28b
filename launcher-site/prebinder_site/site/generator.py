"""Writes the static site from the catalogue: plain files that any web server can serve.

Requirements, each of them tested:
- `folder/current` is at any moment a whole site: a generation is written aside, then one symlink is replaced.
- A crash leaves at most an unfinished folder, which the next publish clears. Two generations are kept, so that a reader
  of the one before still finds its files.
- The same content gives the same bytes: then nothing is swapped.
- No network, no clock: all that a page says comes from the catalogue.

One publisher at a time: the launch endpoint calls `publish` from a thread, never twice at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from prebinder.model.catalogue import Catalogue
from prebinder_site.site.asset_files import Assets
from prebinder_site.site.pages import Pages

_KEPT = 2
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What the pages need to know of the installation."""

    title: str
    """Name of the site."""
    url: str
    """The site's public address, http or https, ending in a slash. Links and badges are made from it."""
    api: str | None = None
    """Address of the launch endpoint, ending in a slash, when another server serves these files; else the same site."""

    def __post_init__(self) -> None:
        for address in (self.url, *([self.api] if self.api is not None else [])):
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.endswith("/"):
                raise ValueError(f"{address!r} must be an http or https address that ends in a slash")

    @property
    def base(self) -> str:
        """The path below which the site lives: begins and ends with a slash."""
        return urlsplit(self.url).path


def publish(catalogue: Catalogue, settings: SiteSettings, folder: Path) -> Path:
    """Write the site of `catalogue` and make it `folder/current`; returns the generation's folder.

    Blocking: about a millisecond a repository. Raises OSError when the folder cannot be written; then the last
    generation stays current.
    """
    generations = folder / "generations"
    generations.mkdir(parents=True, exist_ok=True)
    for leftover in generations.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    current = folder / "current"
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=generations))
    unfinished.chmod(0o755)
    try:
        digest = _write(catalogue, settings, unfinished)
        generation = generations / digest
        if current.is_symlink() and current.resolve() == generation.resolve() and generation.is_dir():
            return generation
        if generation.is_dir():
            shutil.rmtree(generation)
        unfinished.replace(generation)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _point(current, generation)
    _clear(generations, generation)
    return generation


def _write(catalogue: Catalogue, settings: SiteSettings, target: Path) -> str:
    """Write all files below `target`; returns a digest of their paths and contents."""
    assets = Assets()
    pages = Pages(settings.title, settings.url, settings.base, settings.api or settings.base, assets)
    total = hashlib.sha256()
    made: set[Path] = set()
    for path, content in chain(assets.files(), pages.pictures(), pages.render(catalogue)):
        file = target / path
        if file.parent not in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            made.add(file.parent)
        file.write_bytes(content)
        total.update(f"{path}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()[:20]


def _point(current: Path, generation: Path) -> None:
    """Make `current` a link to `generation` in one step. The link is relative, so that the folder can be moved."""
    new = current.with_name(f".current-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    new.symlink_to(Path("generations") / generation.name)
    new.replace(current)


def _clear(generations: Path, newest: Path) -> None:
    """Keep the newest generation and the one before; a generation's age is when it became current."""
    os.utime(newest)
    others = sorted((g for g in generations.iterdir() if g != newest), key=lambda g: g.stat().st_mtime_ns, reverse=True)
    for old in others[_KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
