"""Serves the generated site from memory.

Path-safe by construction: a request's path is only ever a key of a dictionary, never part of a file's name.
Every file is read, hashed and compressed once, when it is loaded; `reload` swaps the whole set at once, so that no
visitor sees half of an old and half of a new site.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

_COMPRESSED_TYPES = re.compile(r"text/|application/(?:json|javascript|xml)|image/svg\+xml")
# The generator puts a hash of the content into the names of assets: those never change.
# A ref may end like one, and its badge changes: `/badges/…/course-20250901.svg`.
_HASHED = re.compile(r"^/?assets/.*[.-][0-9a-f]{8,}\.[a-z0-9]+$")
_FOREVER = b"public, max-age=31536000, immutable"
_CHECK = b"no-cache"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
MAX_FILE_SIZE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Page:
    """One file, ready to send."""

    body: bytes
    compressed: bytes | None
    etag: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """Of the plain body."""
    compressed_headers: tuple[tuple[bytes, bytes], ...]

    async def send(self, scope: Scope, send: Send, status: int = 200) -> None:
        """Answer a GET or HEAD, also a conditional one."""
        etags = encodings = b""
        for name, value in scope["headers"]:
            if name == b"if-none-match":
                etags = value
            elif name == b"accept-encoding":
                encodings = value
        if status == 200 and etags and self.etag in etags:
            await send({"type": "http.response.start", "status": 304, "headers": self.headers[1:]})
            await send({"type": "http.response.body", "body": b""})
            return
        zipped = self.compressed is not None and b"gzip" in encodings
        body = self.compressed if zipped and self.compressed is not None else self.body
        headers = self.compressed_headers if zipped else self.headers
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def make_page(name: str, body: bytes, old: Page | None = None) -> Page:
    """Prepare a file for sending; what did not change is taken from `old`."""
    if old is not None and old.body == body:
        return old
    suffix = Path(name).suffix
    content_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    compressed = gzip.compress(body, 6, mtime=0) if _COMPRESSED_TYPES.match(content_type) and len(body) > 500 else None
    if compressed is not None and len(compressed) >= len(body):
        compressed = None
    etag = b'"' + hashlib.sha256(body).hexdigest()[:24].encode() + b'"'
    common = (
        (b"content-type", content_type.encode()),
        (b"etag", etag),
        (b"cache-control", _FOREVER if _HASHED.search(name) else _CHECK),
        *(((b"vary", b"accept-encoding"),) if compressed is not None else ()),
    )
    return Page(
        body,
        compressed,
        etag,
        ((b"content-length", str(len(body)).encode()), *common),
        (
            (b"content-length", str(len(compressed or b"")).encode()),
            (b"content-encoding", b"gzip"),
            *common,
        ),
    )


class StaticSite:
    """The files below a folder, as an ASGI application."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages: dict[str, Page] = {}

    def reload(self) -> int:
        """Read the folder again (blocking; call it in a thread). Returns the number of files."""
        root = self._folder.resolve()
        pages: dict[str, Page] = {}
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_FILE_SIZE:
                continue
            name = "/" + path.relative_to(root).as_posix()
            page = make_page(name, path.read_bytes(), self._pages.get(name))
            pages[name] = page
            if path.name == "index.html":
                pages[name.removesuffix("index.html")] = page
        self._pages = pages
        return len(pages)

    def page(self, path: str) -> Page | None:
        return self._pages.get(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        page = self._pages.get(path)
        if page is not None and scope["method"] in ("GET", "HEAD"):
            await page.send(scope, send)
            return
        if page is not None:
            await _plain(send, 405, b"Only GET and HEAD are answered here.\n", ((b"allow", b"GET, HEAD"),))
        elif not path.endswith("/") and path + "/" in self._pages:
            location = path.lstrip("/").encode("utf-8", "surrogatepass")
            await _plain(send, 308, b"", ((b"location", b"/" + _quoted(location) + b"/"),))
        elif missing := self._pages.get("/404.html"):
            await missing.send(scope, send, 404)
        else:
            await _plain(send, 404, b"There is no such page.\n")


def _quoted(path: bytes) -> bytes:
    return quote(path, safe="/~@:+,=").encode("ascii")


async def _plain(send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
