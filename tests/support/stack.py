"""A whole Prebinder on this machine for end-to-end tests: `prebinder up` as people run it, on ports and a state folder
of its own, ended with the test and checked to have left nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from prebinder.config.state import StateFolder
from prebinder.onemachine.defaults import default_configuration
from prebinder.onemachine.place import Place

T = TypeVar("T")
PREBINDER = Path(sys.executable).parent / "prebinder"
START_LIMIT = 420.0
"""The first start on a machine makes a base image and installs the proxy."""


def until(what: str, condition: Callable[[], T | None], seconds: float = 60.0, pause: float = 0.05) -> T:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Stack:
    """A running `prebinder up`."""

    root: Path
    port: int
    process: subprocess.Popen[str] | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.root / "state")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def demo_url(self) -> str:
        return f"{self.url}git/examples.git"

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def configuration(self) -> Path:
        return self.state.root / "prebinder.yaml"

    def configure(self, text: str) -> None:
        """Append to the default configuration, as a person would edit it."""
        self.state.create()
        path = default_configuration(self.state, self.port)
        path.write_text(path.read_text() + text)

    def start(self, limit: float = START_LIMIT) -> float:
        """Start, wait for the address on the screen; the seconds that it took."""
        started = time.monotonic()
        self.launch()
        until("the address on the screen", self._ready, limit)
        return time.monotonic() - started

    def launch(self) -> subprocess.Popen[str]:
        """Start, and wait for nothing."""
        self.lines.clear()
        environment = {**os.environ, "HOME": str(self.root / "home"), "NO_COLOR": "1"}
        environment.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        (self.root / "home").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [str(PREBINDER), "up", "--state", str(self.state.root)],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        return self.process

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it as Ctrl-C does; the exit code."""
        assert self.process
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def kill(self) -> None:
        """As `kill -9` does: nothing gets to clear up."""
        assert self.process
        self.process.kill()
        self.process.wait(timeout=30)
        self.process = None

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run another `prebinder` command against this one."""
        done = subprocess.run(
            [str(PREBINDER), *words],
            cwd=self.root,
            env={**os.environ, "PREBINDER_STATE": str(self.state.root), "PREBINDER_SITE": self.url, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url.rstrip("/") + path, timeout=30)

    def left_behind(self) -> list[str]:
        """Processes, mounts and network interfaces that name this state folder."""
        mark = str(self.state.root)
        commands = [(p.pid, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["cmdline"])]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return [
            *(f"process {pid}: {command[:200]}" for pid, command in commands if mark in command),
            *(f"mount {line.split()[1]}" for line in mounts if mark in line),
        ]

    def _ready(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            raise AssertionError(f"prebinder up ended with {self.process.returncode}:\n{self.output}")
        return any(line.strip().startswith("Prebinder is ready") for line in self.lines)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))


@contextlib.contextmanager
def stack(root: Path, configuration: str = "") -> Iterator[Stack]:
    """A configured Prebinder, not started yet; ended in any case."""
    here = Stack(root, free_port())
    here.configure(configuration)
    try:
        yield here
    finally:
        if here.process:
            try:
                here.stop()
            except subprocess.TimeoutExpired:
                here.kill()
        # A path too long for a socket has its sockets elsewhere.
        for folder in (here.state.run, Place.of(here.state.root).socket.parent):
            if not folder.is_relative_to(root):
                shutil.rmtree(folder, ignore_errors=True)
