"""A real podman for tests: storage, network and socket of its own, with the base image in it, torn down wholly.

    from tests.support.engine import base_image, engine      # in the test's conftest.py or module

    pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine")]

    async def test_something(engine: Engine, base_image: str): …

The engine lives as long as the session (one for each pytest-xdist worker that asks: the group keeps it to one). The
base image's file is shared by all sessions (`~/.cache/prebinder`): made once in about a minute, imported in seconds.
`running_engine(state)` gives one more, for tests that kill it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from prebinder.builders.engine import Engine
from prebinder.onemachine.base_image import ensure_base_image
from prebinder.onemachine.engine import start_engine

CACHE = Path.home() / ".cache" / "prebinder"


@contextlib.contextmanager
def running_engine(state: Path) -> Iterator[Engine]:
    """An engine for the state folder, in a thread of its own so that it outlives the event loops of single tests."""
    ready: Future[Engine] = Future()
    done = threading.Event()

    async def live() -> None:
        async with start_engine(state, "podman") as engine:
            ready.set_result(engine)
            await asyncio.to_thread(done.wait)

    def work() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=work, name="engine")
    thread.start()
    try:
        yield ready.result(timeout=120)
    finally:
        done.set()
        thread.join(60)
        assert not thread.is_alive(), "the engine did not stop"


def podman(engine: Engine, *arguments: str | Path, check: bool = True, timeout: float = 120) -> str:
    """Run podman against the engine; its output."""
    done = subprocess.run(
        ["podman", *map(str, arguments)],
        env=engine.full_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A real podman of the session's own. Skips where podman cannot be had."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed; `make test` installs it where it may")
    # A short path: Unix sockets take 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pb-engine-"))
    try:
        with running_engine(folder) as engine:
            yield engine
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def base_image(engine: Engine) -> str:
    """The name of Prebinder's base image in the engine's store."""
    return asyncio.run(ensure_base_image(engine, CACHE, lambda line: print(line)))
