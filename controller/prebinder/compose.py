"""Wires the parts: a controller, a launch endpoint, and the servers that they answer on.

The only place that knows every class. On one machine both run in one process and meet over a Unix socket; apart, over
HTTP with a bearer token: the same client either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import structlog
import uvicorn
from pydantic import SecretStr
from starlette.types import ASGIApp

from prebinder import __version__
from prebinder.builders.base import Builder
from prebinder.builders.engine import Engine
from prebinder.config import Configuration, LiveConfiguration, RepositoryConfig
from prebinder.config.state import StateFolder
from prebinder.hosts.base import Host
from prebinder.model.catalogue import RepositoryEntry
from prebinder.model.failure import EngineError
from prebinder.model.spec import Provider
from prebinder.registry.base import ImageStore
from prebinder_site.settings import EndpointSettings

if TYPE_CHECKING:
    from prebinder.builders.local import LocalBuilder
    from prebinder.reconcile import Controller

log = structlog.get_logger(__name__)

CONTROLLER_TIMEOUT = httpx.Timeout(10.0, read=60.0)


class PortTaken(EngineError):
    """Another program listens where we must."""


class Server(uvicorn.Server):
    """uvicorn beside other servers in one loop: signals are the composition's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(address: str, port: int, key: str) -> socket.socket:
    """A listening socket. Raises PortTaken with what to do; `key` is the configuration key of the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms more for many answers (base_events._set_nodelay).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise PortTaken(
            f"Port {port} on {address} cannot be used ({error.strerror}). "
            f"Stop what uses it, or choose another with {key} in the configuration."
        ) from None
    listener.listen(2048)
    return listener


@contextlib.asynccontextmanager
async def served(
    app: ASGIApp, *, sockets: list[socket.socket] | None = None, uds: Path | None = None
) -> AsyncIterator[None]:
    """Serve `app` while this is open; on the way out open streams get two seconds."""
    if uds is not None:
        uds.unlink(missing_ok=True)
    server = Server(
        uvicorn.Config(
            app,
            uds=str(uds) if uds else None,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=30,
            lifespan="on",
            ws="none",
        )
    )
    task = asyncio.create_task(server.serve(sockets=sockets))
    try:
        while not server.started:
            if task.done():
                task.result()
                raise EngineError("The web server did not start; the log says why.")
            await asyncio.sleep(0.01)
        if uds is not None:
            uds.chmod(0o600)
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task], timeout=10)
        if uds is not None:
            uds.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RunningController:
    """A started controller, and the applications that speak for it."""

    controller: Controller
    api: ASGIApp
    """For the Unix socket, which only its owner may open."""
    guarded: ASGIApp
    """The same behind the bearer token, if there is one."""
    hooks: ASGIApp


@contextlib.asynccontextmanager
async def started_controller(
    live: LiveConfiguration,
    state: StateFolder,
    *,
    builder: Builder,
    images: ImageStore,
    hosts: Mapping[Provider, Host],
    token: SecretStr | None = None,
) -> AsyncIterator[RunningController]:
    """A controller from `live` that follows its file, until the block ends."""
    # Here: a launch endpoint apart needs none of it, and saves 40 MB.
    from prebinder.api.app import create_app, create_hooks_app
    from prebinder.builders.logs import LogStore
    from prebinder.ledger import Ledger
    from prebinder.reconcile import Controller

    ledger = await Ledger.open(live.current.ledger.url or state.ledger)
    try:
        controller = Controller(
            live, ledger=ledger, hosts=hosts, builder=builder, images=images, logs=LogStore(state.logs)
        )
        await controller.start()
        stop = asyncio.Event()
        following = asyncio.create_task(live.follow(controller.configuration_changed, stop))
        try:
            yield RunningController(
                controller, create_app(controller, None), create_app(controller, token), create_hooks_app(controller)
            )
        finally:
            stop.set()
            await asyncio.wait([following], timeout=5)
            await controller.stop()
    finally:
        await ledger.aclose()


def endpoint_settings(
    configuration: Configuration,
    state: StateFolder,
    hosts: Mapping[Provider, Host],
    *,
    public_url: str,
    hub_api_url: str,
    hub_public_url: str,
    hub_token: SecretStr,
) -> EndpointSettings:
    """What the launch endpoint needs to know, from the configuration and the addresses that are known by now."""
    from importlib.metadata import version

    return EndpointSettings(
        title=configuration.site.title,
        public_url=public_url,
        allow_origin=configuration.site.allow_origin,
        build_only=configuration.site.build_only,
        site_folder=state.site,
        state_folder=state.endpoint,
        hub_api_url=hub_api_url,
        hub_public_url=hub_public_url,
        hub_token=hub_token,
        image_prefix=configuration.registry.image_prefix,
        registered=tuple(_entry(r, hosts) for r in configuration.repositories),
        on_demand=configuration.on_demand,
        stale_after=configuration.polling.stale_after,
        click_budget=configuration.polling.click_budget,
        host_timeout=configuration.hosts.timeout,
        start_timeout=configuration.hub.start_timeout,
        max_servers=configuration.hub.max_servers,
        version=__version__,
        builder_version=version("jupyter-repo2docker"),
    )


def _entry(registered: RepositoryConfig, hosts: Mapping[Provider, Host]) -> RepositoryEntry:
    host = hosts.get(registered.repository.provider)
    return registered.entry(host.web_url(registered.repository) if host else "")


def local_builder(
    configuration: Configuration, state: StateFolder, engine: Engine, pip_base_image: str | None = None
) -> LocalBuilder:
    """repo2docker on this machine."""
    from prebinder.builders.local import LocalBuilder

    return LocalBuilder(
        engine,
        state.work,
        registry=configuration.registry,
        content_providers=configuration.builder.content_providers,
        pip_base_image=pip_base_image,
    )


def controller_client(
    url: str = "http://controller", *, token: SecretStr | None = None, uds: Path | None = None
) -> httpx.AsyncClient:
    """How an endpoint speaks to its controller: any number of connections, because each followed build holds one.

    With `uds`, to the controller of the same process, over the Unix socket that the command line uses too: httpx's
    in-process transport holds a response back until it has ended, so that no event stream would ever begin.
    """
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {token.get_secret_value()}"} if token else {},
        transport=httpx.AsyncHTTPTransport(uds=str(uds), limits=limits) if uds else None,
        limits=limits,
        timeout=CONTROLLER_TIMEOUT,
    )


def public_url(configuration: Configuration, port: int) -> str:
    """The site as browsers reach it; ends in a slash."""
    if configuration.site.url:
        return configuration.site.url.rstrip("/") + "/"
    return f"http://{_host_of(configuration.site.address)}:{port}/"


def public_host(configuration: Configuration) -> str:
    """The host under which browsers reach this machine, for URLs: the site's."""
    host = urlsplit(configuration.site.url or "").hostname
    if host:
        return f"[{host}]" if ":" in host else host
    return _host_of(configuration.site.address)


def _host_of(address: str) -> str:
    """The host of an address to listen on; for all addresses, the one by which this machine goes out."""
    if address in ("0.0.0.0", "::"):  # noqa: S104
        family, elsewhere = (socket.AF_INET6, "2001:db8::1") if address == "::" else (socket.AF_INET, "192.0.2.1")
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            try:
                way.connect((elsewhere, 9))  # nothing is sent
                address = way.getsockname()[0]
            except OSError:
                address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    return f"[{address}]" if ":" in address else address
