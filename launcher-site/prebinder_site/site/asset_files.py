"""Style, scripts and fonts under names that hold a digest of their content, so that browsers may keep them for ever.

A file that names another (`import … from "./landing.js"`, `url("fonts/….woff2")`) gets the other's digest written into
it before its own is taken: a change anywhere gives new names all the way up. No file may name itself in a circle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = "assets"
_HERE = Path(__file__).parent / FOLDER
_NAMED = re.compile(r"""(?<=["'])\./(?P<name>[\w./-]+\.(?:js|woff2))(?=["'])""")
_TEXT = (".js", ".css")


class Assets:
    """All assets of one generation. Raises KeyError for a name that is none of them."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._contents: dict[str, bytes] = {}
        for file in sorted(_HERE.rglob("*")):
            if file.is_file() and file.suffix in (*_TEXT, ".woff2"):
                self._add(file.relative_to(_HERE).as_posix())
        licence = "fonts/LICENSE.txt"
        self._contents[f"{FOLDER}/{licence}"] = (_HERE / licence).read_bytes()

    def address(self, name: str) -> str:
        """`site.css` → `assets/site-1a2b3c4d5e.css`, below the site's base."""
        return self._addresses[name]

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Pairs of a path within the site and the file's content."""
        yield from self._contents.items()

    def _add(self, name: str) -> str:
        if name not in self._addresses:
            content = (_HERE / name).read_bytes()
            if name.endswith(_TEXT):
                content = _NAMED.sub(lambda m: self._beside(m["name"]), content.decode()).encode()
            stem, dot, suffix = name.rpartition(".")
            address = f"{FOLDER}/{stem}-{hashlib.sha256(content).hexdigest()[:10]}{dot}{suffix}"
            self._addresses[name] = address
            self._contents[address] = content
        return self._addresses[name]

    def _beside(self, name: str) -> str:
        """How one asset names another: all asset files that name others stand at the top of the folder."""
        return "./" + self._add(name).removeprefix(f"{FOLDER}/")
