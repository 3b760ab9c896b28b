"""Git's `post-receive` hook: tells Prebinder which refs a push moved, by the signed webhook of plain Git.

Run by Git after every push, so it must start fast (the standard library alone, `python -I -S`), end soon whatever
happens, and never fail a push. It says one line to the person who pushes for each branch or tag.

    python -I -S post_receive.py SETTINGS.json  <  "<old id> <new id> <ref>" lines

SETTINGS.json holds `clone_url`, `hook_url` and `secret`; only the owner may read it.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

TIME_LIMIT = 5.0
MAX_REFS = 50
_LATER = "it will see the push at its next look"


def main(arguments: list[str], lines: Iterable[bytes]) -> Iterator[str]:
    """Send one webhook for each ref and yield what the person is told."""
    settings = json.loads(Path(arguments[0]).read_text())
    deadline = time.monotonic() + TIME_LIMIT
    for number, line in enumerate(lines):
        old, new, ref = line.decode("utf-8", "replace").rstrip("\n").split(" ", 2)
        kind, _, name = ref.removeprefix("refs/").partition("/")
        if kind not in ("heads", "tags"):
            continue
        if number >= MAX_REFS:
            yield f"more than {MAX_REFS} refs at once; {_LATER} for the others"
            return
        gone = not new.strip("0")
        try:
            status = _send(
                settings, {"repository": settings["clone_url"], "ref": ref, "before": old, "after": new}, deadline
            )
        except (OSError, http.client.HTTPException) as error:
            why = "did not answer in time" if isinstance(error, TimeoutError) else "is not running"
            yield f"{name} → {new[:7]}, but Prebinder {why}; {_LATER}"
            return
        if status in (200, 202):
            yield f"{name} is gone" if gone else f"{name} → {new[:7]}, build requested"
        else:
            yield f"{name} → {new[:7]}, but the webhook was answered with {status}; {_LATER}"


def _send(settings: dict[str, str], notice: dict[str, str], deadline: float) -> int:
    """POST the notice; the HTTP status. Raises OSError (also TimeoutError) or HTTPException."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    body = json.dumps(notice).encode()
    signature = hmac.new(settings["secret"].encode(), body, hashlib.sha256).hexdigest()
    url = urlsplit(settings["hook_url"])
    connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = connect(url.hostname or "", url.port, timeout=left)
    try:
        connection.request(
            "POST",
            url.path or "/",
            body,
            {
                "Content-Type": "application/json",
                "X-Prebinder-Signature-256": f"sha256={signature}",
                "X-Prebinder-Delivery": os.urandom(16).hex(),
            },
        )
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        for told in main(sys.argv[1:], sys.stdin.buffer):
            sys.stdout.buffer.write(f"Prebinder: {told}\n".encode())
            sys.stdout.buffer.flush()
    except (OSError, ValueError, KeyError, IndexError) as problem:
        sys.stdout.buffer.write(f"Prebinder: the hook is not set up rightly ({type(problem).__name__})\n".encode())
