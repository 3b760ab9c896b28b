"""What a click on a ready image costs in the launch endpoint itself, and how many pages a second it serves.

Endpoint, stand-in Hub and load generator are processes of their own, the latter two in Node: a load generator in the
endpoint's language would measure itself. All of them share this machine's cores.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from benchmarks.report import Row, percentile
from prebinder.onemachine.proxy import find_node

HERE = Path(__file__).parent
CLICK = "build/gh/university/course-7/HEAD"


def measure() -> list[Row]:
    """All of it, in about a minute."""
    node = str(find_node()[0])
    with tempfile.TemporaryDirectory(prefix="prebinder-bench-") as folder, contextlib.ExitStack() as processes:
        hub = processes.enter_context(_running([node, str(HERE / "standin_hub.mjs")]))
        command = [sys.executable, "-m", "benchmarks.endpoint", folder, hub.words]
        endpoint = processes.enter_context(_running(command, cwd=HERE.parent))
        url = f"http://127.0.0.1:{endpoint.words}/"
        _wait_for_pages(url)
        rest = psutil.Process(endpoint.pid).memory_info().rss / 2**20
        _clicks(node, url, 300, 10)  # warm
        alone = _clicks(node, url, 300, 1)
        before = psutil.Process(endpoint.pid).cpu_times()
        crowd = _clicks(node, url, 4000, 100)
        after = psutil.Process(endpoint.pid).cpu_times()
        processor = (after.user + after.system - before.user - before.system) / len(crowd.times) * 1000
        rows = [
            Row("click on a ready image, one at a time, p50", f"{percentile(alone.times, 50):.1f} ms", "≤ 5 ms"),
            Row("the same, p99", f"{percentile(alone.times, 99):.1f} ms"),
            Row("100 clicks at once", f"{len(crowd.times) / crowd.seconds:.0f} clicks/s", "≥ 500 clicks/s"),
            Row("the same, p50", f"{percentile(crowd.times, 50):.0f} ms"),
            Row("the same, p99", f"{percentile(crowd.times, 99):.0f} ms", "≤ 300 ms"),
            Row("processor time of the endpoint for a click", f"{processor:.2f} ms"),
            Row("memory of the endpoint at rest", f"{rest:.0f} MiB"),
        ]
        for name, path in (
            ("launch page", "v2/gh/university/course-7/HEAD"),
            ("home page", ""),
            ("badge", "badge_logo.svg"),
        ):
            rows.append(Row(f"{name}, 50 connections", _pages(url + path)))
        return rows


class _Process:
    def __init__(self, pid: int, words: str) -> None:
        self.pid = pid
        self.words = words


class _Load:
    def __init__(self, seconds: float, times: list[float]) -> None:
        self.seconds = seconds
        self.times = times


@contextlib.contextmanager
def _running(command: list[str], cwd: Path | None = None) -> Iterator[_Process]:
    """A process that prints one line when it listens; ended with the block."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().strip()
        if not words:
            raise RuntimeError(f"{command[0]} did not start")
        yield _Process(process.pid, words)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _clicks(node: str, url: str, total: int, at_once: int) -> _Load:
    command = [node, str(HERE / "load.mjs"), url + CLICK, str(total), str(at_once)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"a click failed: {done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    return _Load(result["seconds"], result["times"])


def _pages(url: str) -> str:
    if shutil.which("wrk") is None:
        return "not measured: wrk is not installed"
    done = subprocess.run(["wrk", "-t1", "-c50", "-d5", url], capture_output=True, text=True, timeout=60, check=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if rate is None or "Non-2xx" in done.stdout:
        return f"failed: {done.stdout[-300:]}"
    return f"{float(rate[1]):.0f} requests/s"


def _wait_for_pages(url: str) -> None:
    """Until the site has been generated."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(URLError, ConnectionError):
            if urlopen(f"{url}badge_logo.svg", timeout=5).status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the endpoint's pages did not come")
