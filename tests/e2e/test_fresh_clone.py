"""`make up` as a newcomer runs it: a fresh clone, an empty home, nothing installed before; one command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.git_server import git
from tests.support.stack import free_port, until

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.hub, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]


def test_make_up_in_a_fresh_clone_with_an_empty_home_serves_a_demo_that_becomes_ready(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    clone = tmp_path / "prebinder"
    git("clone", "--quiet", ROOT, clone)
    home = tmp_path / "home"
    home.mkdir()
    # As on a fresh machine: our own environment variables, caches and tools do not reach it.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PREBINDER_", "VIRTUAL_ENV", "UV_"))}
    port = free_port()
    process = subprocess.Popen(
        ["make", "up", f"ARGS=--port {port}"],
        cwd=clone,
        env={**kept, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout
        lines.extend(process.stdout)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:

        def ready() -> bool:
            assert process.poll() is None, "".join(lines)
            return any("Prebinder is ready" in line for line in lines)

        until("make up says the address", ready, 900, 0.5)
        url = f"http://127.0.0.1:{port}/"
        assert any(url in line for line in lines)
        page = httpx.get(url, timeout=30).text
        links = re.findall(r'href="([^"]*v2/git/[^"]+)"', page)
        assert links, "the home page links the demo's launch page"
        assert httpx.get(httpx.URL(url).join(links[0]), timeout=30).status_code == 200

        def first_image() -> bool:
            return any("ready " in line and "examples" in line for line in lines)

        until("the demo's first image", first_image, 400, 0.5)
    finally:
        if process.poll() is None:
            # As a terminal does at Ctrl-C: to make and to what it runs.
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=90)
        reader.join(timeout=10)
    (tmp_path / "output.txt").write_text("".join(lines))
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(clone) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
    assert [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(clone) in line] == []
