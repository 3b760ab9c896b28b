"""Addresses within the site: one safe path segment for any repository or ref, and links only where they are safe.

Requirements, each of them tested:
- Different names give different segments, whatever the names hold; a segment is never hidden, `.`, `..` or too long
  for a file's name.
- `assets/launch.js` computes the same segment in the browser (up to the length where a digest takes over).
- Only http and https addresses become links.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

_UNSAFE = re.compile(rb"[^A-Za-z0-9.~-]")
_LONGEST = 180


def segment(name: str) -> str:
    """`name` as one path segment: `/` becomes `~`, and other unusual bytes `_` and two hex digits."""
    text = name.replace("~", "\0").replace("/", "~").encode("utf-8", "surrogatepass")
    escaped = _UNSAFE.sub(lambda m: b"_%02x" % (0x7E if m[0] == b"\0" else m[0][0]), text).decode("ascii")
    if escaped.startswith("."):
        escaped = "_2e" + escaped[1:]
    if len(escaped) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{escaped[:_LONGEST]}_-{digest[:16]}"
    return escaped


def repository_segment(provider: str, name: str) -> str:
    """The segment of a repository; GitHub ignores case in names, so the address does too there."""
    return segment(name.lower() if provider == "gh" else name)


def web_address(url: str) -> str | None:
    """`url` when it is an http or https address with a host; else None, so that no page links it."""
    try:
        parts = urlsplit(url)
        safe = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return None
    return url if safe and url.isprintable() and not re.search(r"[\s\\<>\"]", url) else None
