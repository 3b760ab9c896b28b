"""JupyterHub on one machine: its proxy, the Hub itself and the culler, as children of ours.

Guarantees:
- The Hub and the proxy's own API listen on 127.0.0.1 alone, on ports that were free; only the proxy faces browsers.
- Secrets are made once, kept in files of mode 600 and handed on by file or environment, never on a command line.
- The proxy runs beside the Hub, not below it: when the Hub is started again, people keep their servers.
- `stop` takes seconds. Users' containers are the engine owner's to remove: every start begins with an empty database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import structlog
from pydantic import SecretStr

from prebinder.builders.engine import PASSED_ON, Engine
from prebinder.config.models import HubConfig
from prebinder.model.failure import HubError
from prebinder.onemachine.children import Child, end_leftovers
from prebinder.onemachine.proxy import Proxy, install_proxy
from prebinder_site.jupyterhub import SETTINGS_VARIABLE, HubSettings

__all__ = ["HubProcess", "Proxy", "install_proxy"]

log = structlog.get_logger(__name__)

_CONFIGURATION = """\
# Written by Prebinder at every start; changes here are lost.
from prebinder_site.jupyterhub import configure

configure(get_config())
"""
_HUB_START_TIMEOUT = 60.0
_CULLER = "jupyterhub_idle_culler"


class HubProcess:
    """One JupyterHub. After `start`: `api_url`, `public_url` (both end in a slash) and `token` say how to reach it."""

    def __init__(
        self,
        folder: Path,
        config: HubConfig,
        engine: Engine | None,
        proxy: Proxy,
        *,
        secret: Callable[[str], str],
        image_prefix: str,
        pull: bool = False,
        registry_credentials: Path | None = None,
        address: str = "127.0.0.1",
        preferred_port: int | None = None,
        public_url: str | None = None,
        public_host: str = "127.0.0.1",
        allow_origin: str = "*",
        log_folder: Path | None = None,
        spawner: str | None = None,
    ) -> None:
        """`folder` is the Hub's own; `secret(name)` gives a random secret that lasts; `pull`: images come from a
        registry, not from the engine's own store; `preferred_port` is tried for the proxy when `config.port` is not
        set; `public_host` is how browsers reach this machine, where `public_url` does not say more; `spawner` names
        another spawner class than containers on `engine`."""
        self._folder = folder
        self._config = config
        self._engine = engine
        self._proxy = proxy
        self._image_prefix = image_prefix
        self._pull = pull
        self._registry_credentials = registry_credentials
        self._address = address
        self._preferred_port = preferred_port
        self._public_url = public_url
        self._public_host = public_host
        self._allow_origin = allow_origin
        self._logs = log_folder or folder
        self._spawner = spawner
        self._tokens = {name: secret(name) for name in ("hub-prebinder", "hub-culler", "hub-proxy")}
        self._cookie_secret = secret("hub-cookie")
        self._children: list[Child] = []
        self.token = SecretStr(self._tokens["hub-prebinder"])
        self.api_url = ""
        self.public_url = ""

    async def start(self) -> None:
        """Start all of it and wait until the Hub answers. Raises HubError; then nothing is left running."""
        self._folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(end_leftovers, self._folder)
        port = self._public_port()
        hub_port, proxy_port = _free_ports(2)
        self.public_url = self._public_url or f"http://{self._public_host}:{port}/"
        self.api_url = f"http://127.0.0.1:{hub_port}/hub/api/"
        settings = self._settings(port, hub_port, proxy_port)
        self._write(settings)
        # Containers of an earlier run are gone, and with them what the old database tells.
        for old in self._folder.glob("jupyterhub.sqlite*"):
            old.unlink()
        self._children = [
            self._proxy_child(port, hub_port, proxy_port),
            self._hub_child(),
            self._culler_child(),
        ]
        try:
            for child in self._children:
                await child.start()
        except BaseException:
            await self.stop()
            raise
        log.info("hub.started", public=self.public_url, api=self.api_url)

    async def stop(self) -> None:
        """End culler, Hub and proxy. Takes seconds, and does nothing the second time."""
        children, self._children = self._children[::-1], []
        await asyncio.gather(*(child.stop() for child in children))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of what runs now."""
        return tuple(child.pid for child in self._children if child.pid is not None)

    def _settings(self, port: int, hub_port: int, proxy_port: int) -> HubSettings:
        engine = self._engine
        chosen = {"spawner": self._spawner} if self._spawner else {}
        return HubSettings(
            public_bind_url=f"http://{_bracketed(self._address)}:{port}/",
            hub_port=hub_port,
            proxy_api_url=f"http://127.0.0.1:{proxy_port}",
            proxy_token=SecretStr(self._tokens["hub-proxy"]),
            prebinder_token=self.token,
            culler_token=SecretStr(self._tokens["hub-culler"]),
            database=f"sqlite:///{self._folder / 'jupyterhub.sqlite'}",
            cookie_secret_file=self._folder / "cookie-secret",
            image_prefix=self._image_prefix,
            engine_socket=engine.socket if engine else None,
            engine_network=engine.network if engine else "bridge",
            engine_labels=dict(engine.labels) if engine else {},
            pull=self._pull,
            registry_credentials=self._registry_credentials,
            memory=self._config.memory,
            cpu=self._config.cpu,
            start_timeout=self._config.start_timeout,
            max_servers=self._config.max_servers,
            idle=self._config.cull.idle,
            allow_origin=self._allow_origin,
            **chosen,
        )

    def _write(self, settings: HubSettings) -> None:
        self._folder.chmod(0o700)
        values = settings.model_dump(mode="json")
        for name in ("proxy_token", "prebinder_token", "culler_token"):
            values[name] = getattr(settings, name).get_secret_value()
        _write_private(self._settings_file, json.dumps(values, indent=2))
        # JupyterHub wants hex digits in it, and refuses a file that others can read.
        _write_private(self._folder / "cookie-secret", self._cookie_secret + "\n")
        (self._folder / "jupyterhub_config.py").write_text(_CONFIGURATION)

    @property
    def _settings_file(self) -> Path:
        return self._folder / "settings.json"

    def _environment(self, **further: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        python_path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {**kept, **python_path, "HOME": str(self._folder), "PYTHONUNBUFFERED": "1", **further}

    def _proxy_child(self, port: int, hub_port: int, proxy_port: int) -> Child:
        token = self._tokens["hub-proxy"]

        async def ready() -> bool:
            return await _answers(f"http://127.0.0.1:{proxy_port}/api/routes", {"Authorization": f"token {token}"})

        return Child(
            "JupyterHub's proxy",
            [
                *self._proxy.command,
                *("--ip", self._address, "--port", str(port)),
                *("--api-ip", "127.0.0.1", "--api-port", str(proxy_port)),
                *("--error-target", f"http://127.0.0.1:{hub_port}/hub/error"),
                *("--log-level", "warn"),
            ],
            environment=self._environment(CONFIGPROXY_AUTH_TOKEN=token),
            folder=self._folder,
            log_file=self._logs / "proxy.log",
            ready=ready,
            notes=self._folder,
        )

    def _hub_child(self) -> Child:
        async def ready() -> bool:
            return await _answers(self.api_url, {})

        return Child(
            "JupyterHub",
            [sys.executable, "-m", "jupyterhub", "-f", str(self._folder / "jupyterhub_config.py")],
            environment=self._environment(**{SETTINGS_VARIABLE: str(self._settings_file)}),
            folder=self._folder,
            log_file=self._logs / "hub.log",
            ready=ready,
            notes=self._folder,
            start_timeout=_HUB_START_TIMEOUT,
        )

    def _culler_child(self) -> Child:
        cull = self._config.cull

        async def ready() -> bool:
            return True

        return Child(
            "The culler",
            [
                *(sys.executable, "-m", _CULLER, "--cull-users=True"),
                f"--timeout={max(1, round(cull.idle))}",
                f"--cull-every={max(1, round(cull.every))}",
                f"--max-age={round(cull.max_age)}",
                f"--url={self.api_url.rstrip('/')}",
            ],
            environment=self._environment(JUPYTERHUB_API_TOKEN=self._tokens["hub-culler"]),
            folder=self._folder,
            log_file=self._logs / "culler.log",
            ready=ready,
            notes=self._folder,
        )

    def _public_port(self) -> int:
        """The configured port, or the preferred one when it is free, or any free one. Raises HubError."""
        if self._config.port is not None:
            if not _is_free(self._address, self._config.port):
                raise HubError(
                    f"Port {self._config.port} on {self._address} is taken. "
                    "Stop what uses it, or choose another with hub.port in the configuration."
                )
            return self._config.port
        if self._preferred_port is not None and _is_free(self._address, self._preferred_port):
            return self._preferred_port
        return _free_ports(1, self._address)[0]


async def _answers(url: str, headers: dict[str, str]) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            return (await client.get(url, headers=headers)).status_code == 200
    return False


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_free(address: str, port: int) -> bool:
    try:
        with _bound(address, port):
            return True
    except OSError:
        return False


def _free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bound(address, 0)) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def _bound(address: str, port: int) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        yield listener
    finally:
        listener.close()


def _write_private(path: Path, text: str) -> None:
    half = path.with_suffix(".new")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    half.replace(path)
