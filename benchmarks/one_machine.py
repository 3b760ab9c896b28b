"""One machine, all parts real: from `git push` to a build, to an image, to a server; and memory at rest.

Starts `prebinder up` on a state folder of its own, pushes to the demo's repository, clicks, and stops it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil

from benchmarks.report import Row
from tests.support.git_server import git
from tests.support.stack import Stack, stack, until

REPEATS = 5


def measure() -> list[Row]:
    """Run it all; takes some minutes."""
    with tempfile.TemporaryDirectory(prefix="prebinder-bench-") as folder, stack(Path(folder)) as here:
        rows = [Row("`prebinder up` on an empty state folder → address on the screen", f"{here.start():.1f} s")]
        demo_ready = until("the demo is ready", lambda: _first_ready(here), 600, 0.2)
        rows.append(Row("the demo's first image, cold cache (queued → ready)", f"{demo_ready:.1f} s"))
        rows += _pushes(here, Path(folder))
        rows += _clicks(here)
        rows.append(
            Row("memory of controller and endpoint at rest (one process, PSS)", f"{_memory(here):.0f} MB", "≤ 150 MB")
        )
        here.stop()
        rows.append(Row("`prebinder up` again → address on the screen", f"{here.start():.1f} s", "seconds"))
        here.stop()
        return rows


def _pushes(here: Stack, folder: Path) -> list[Row]:
    checkout = folder / "examples"
    git("clone", here.demo_url, checkout)
    content = [_push(here, checkout, "notes.md", f"note {n}\n") for n in range(REPEATS)]
    packages = _push(here, checkout, "requirements.txt", "cowsay==6.1\n")
    started = [p[0] for p in (*content, packages)]
    return [
        Row(
            "`git push` begun → build started, median (accepted in between)",
            f"{statistics.median(started) * 1000:.0f} ms",
            "≤ 1 s",
        ),
        Row("the same, slowest", f"{max(started) * 1000:.0f} ms", "≤ 1 s"),
        Row(
            "push that changes content only → image ready, warm cache, median",
            f"{statistics.median(p[1] for p in content):.1f} s",
        ),
        Row("push that changes `requirements.txt` → image ready", f"{packages[1]:.1f} s"),
    ]


def _push(here: Stack, checkout: Path, name: str, text: str) -> tuple[float, float]:
    """Seconds from the begin of `git push` to the build's start, and from its end to the image."""
    (checkout / name).write_text(text)
    git("add", "-A", cwd=checkout)
    git("commit", "-m", f"Change {name}", cwd=checkout)
    began = time.time()
    git("push", "origin", "HEAD", cwd=checkout)
    pushed = time.time()
    revision = git("rev-parse", "HEAD", cwd=checkout)
    build = until("the image", lambda: _finished(here, revision), 300, 0.1)
    started, finished = (datetime.fromisoformat(str(build[k])).timestamp() for k in ("started_at", "finished_at"))
    # The hook runs before `git push` returns, so a build starts while the push is still running: what is measured is
    # from the push's begin, and so an upper bound.
    return started - began, finished - pushed


def _clicks(here: Stack) -> list[Row]:
    seconds = []
    for _ in range(REPEATS):
        started = time.monotonic()
        url = f"{here.url}build/git/{quote(here.demo_url, safe='')}/HEAD"
        with httpx.stream("GET", url, timeout=120) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:") and json.loads(line[5:])["phase"] == "ready":
                    seconds.append(time.monotonic() - started)
                    break
    assert len(seconds) == REPEATS, "a click failed"
    return [
        Row(
            "click on a ready image → server answers, median (JupyterHub, podman)",
            f"{statistics.median(seconds):.1f} s",
        )
    ]


def _builds(here: Stack) -> list[dict[str, object]]:
    transport = httpx.HTTPTransport(uds=str(here.state.controller_socket))
    with httpx.Client(transport=transport, base_url="http://controller", timeout=10) as client:
        builds: list[dict[str, object]] = client.get("/api/builds").json()
        return builds


def _finished(here: Stack, revision: str) -> dict[str, object] | None:
    build = next((b for b in _builds(here) if b["revision"] == revision), None)
    if build and build["state"] == "failed":
        raise AssertionError(f"the build failed: {build['message']}")
    return build if build and build["state"] == "ready" else None


def _first_ready(here: Stack) -> float | None:
    builds = _builds(here)
    if not builds or any(b["state"] != "ready" for b in builds):
        return None
    first = min(builds, key=lambda b: str(b["started_at"]))
    began, ended = (datetime.fromisoformat(str(first[k])).timestamp() for k in ("queued_at", "finished_at"))
    return ended - began


def _memory(here: Stack) -> float:
    assert here.process
    return float(psutil.Process(here.process.pid).memory_full_info().pss) / 1e6
