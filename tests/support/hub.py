"""A real JupyterHub with its real proxy and culler, whose servers are small processes instead of containers.

    async with real_hub(tmp_path, idle=600) as hub:
        hub.api_url, hub.public_url, hub.token

Servers as containers of a real engine are tested in tests/controller/onemachine/test_hub.py, marked `engine`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import platformdirs
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Unicode

from prebinder.config.models import CullConfig, HubConfig
from prebinder.onemachine.hub import HubProcess, install_proxy
from prebinder_site.jupyterhub import PrebinderSpawner

PREFIX = "registry.test/binder/"
ROOT = Path(__file__).parents[2]


class ProcessSpawner(PrebinderSpawner, SimpleLocalProcessSpawner):
    """Runs tests/support/small_server.py. An image named `…missing…` is not there; `…broken…` ends at once."""

    image = Unicode()
    interrupt_timeout = 0
    term_timeout = 1

    async def start(self) -> Any:
        starting = super().start()
        if "missing" in self.image:
            starting.close()
            raise RuntimeError(f"no such image: {self.image}")
        script = "raise SystemExit(3)" if "broken" in self.image else ""
        self.cmd = [sys.executable, *(["-c", script] if script else [str(ROOT / "tests/support/small_server.py")])]
        self.home_dir = os.environ["HOME"]
        return await starting


def proxy_folder() -> Path:
    """The proxy is installed once for all tests."""
    return platformdirs.user_cache_path("prebinder") / "node"


@contextlib.asynccontextmanager
async def real_hub(
    folder: Path, *, idle: float = 600, every: float = 60, prefix: str = PREFIX, **config: Any
) -> AsyncIterator[HubProcess]:
    """A Hub of the test's own on free ports. It and its users' servers end with the block."""
    known: dict[str, str] = {}
    hub = HubProcess(
        folder / "hub",
        HubConfig(cull=CullConfig(idle=idle, every=every), **config),
        None,
        await install_proxy(proxy_folder()),
        secret=lambda name: known.setdefault(name, secrets.token_hex(32)),
        image_prefix=prefix,
        spawner="tests.support.hub.ProcessSpawner",
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.stop()
        _end_servers(folder)
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def _end_servers(folder: Path) -> None:
    """What the engine's owner does with containers."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(folder / "hub"):
                process.kill()
                process.wait(5)
