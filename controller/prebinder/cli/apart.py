"""`prebinder controller` and `prebinder serve`: the two halves as processes of their own, for a supervisor to run."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from prebinder import compose
from prebinder.builders.base import Builder
from prebinder.config import LiveConfiguration, load
from prebinder.config.models import SecretRef
from prebinder.config.state import StateFolder
from prebinder.config.watch import CONTROLLER_READS_ONCE
from prebinder.hosts.table import create_hosts
from prebinder.model.failure import ConfigurationError, EngineError
from prebinder.onemachine.base_image import pip_base_image
from prebinder.onemachine.engine import start_engine
from prebinder.onemachine.exclusive import exclusive
from prebinder.registry import ImageStore, create_image_store

log = structlog.get_logger(__name__)


async def run_controller(path: Path, state_root: Path) -> int:
    """`prebinder controller`: until SIGTERM. Returns the exit code."""
    state = StateFolder(state_root)
    state.create()
    state.see_space()
    live = LiveConfiguration(load(path), path, read_once=CONTROLLER_READS_ONCE)
    configuration = live.current
    token = _secret(configuration.controller.token)
    if token is None and configuration.controller.address not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigurationError("controller.token is needed, because controller.address is more than this machine.")
    listener = compose.listen(configuration.controller.address, configuration.controller.port, "controller.port")
    stopped = asyncio.ensure_future(until_signal())
    async with contextlib.AsyncExitStack() as parts:
        parts.callback(listener.close)
        parts.callback(stopped.cancel)
        standby, lost = None, None
        if configuration.controller.lease:
            from prebinder.cli.on_kubernetes import lead
            from prebinder.leader import Standby

            standby = Standby()
            await parts.enter_async_context(compose.served(standby, sockets=[listener]))
            lost = await lead(parts, configuration.controller.lease, listener.getsockname()[1], stopped)
            if lost is None:
                return 0
            live.reload()
            configuration = live.start()
        async with broken_off(stopped, lost):
            parts.enter_context(exclusive(state))
            images, builder = await _what_builds(live, state, parts)
            hosts = create_hosts(configuration.hosts, state.git_cache)
            running = await parts.enter_async_context(
                compose.started_controller(live, state, builder=builder, images=images, hosts=hosts, token=token)
            )
            if configuration.builder.kind == "kubernetes":
                from prebinder.cli.on_kubernetes import prepulling

                await parts.enter_async_context(prepulling(live, running.controller))
            if standby:
                standby.app = running.guarded
            else:
                await parts.enter_async_context(compose.served(running.guarded, sockets=[listener]))
            await parts.enter_async_context(compose.served(running.api, uds=state.controller_socket))
            log.info("controller.ready", address=configuration.controller.address, port=listener.getsockname()[1])
        await until_over(stopped, lost)
    return 0


async def _what_builds(
    live: LiveConfiguration, state: StateFolder, parts: contextlib.AsyncExitStack
) -> tuple[ImageStore, Builder]:
    """The image store and the builder that the configuration names; `parts` ends them."""
    configuration = live.current
    if configuration.builder.kind == "kubernetes":
        # Here: one machine needs none of it.
        from prebinder.builders.kubernetes.builder import KubernetesBuilder

        if configuration.registry.prefix is None:
            raise ConfigurationError("builder.kind: kubernetes needs registry.prefix: nodes share no engine's store.")
        images = create_image_store(configuration.registry)
        parts.push_async_callback(images.aclose)
        jobs = KubernetesBuilder(lambda: live.current, images.digest)
        parts.push_async_callback(jobs.aclose)
        return images, jobs
    engine = await parts.enter_async_context(start_engine(state.root, configuration.builder.engine))
    images = create_image_store(configuration.registry, engine.socket)
    parts.push_async_callback(images.aclose)
    base = await pip_base_image(configuration, engine, lambda text: log.info("base_image", doing=text))
    return images, compose.local_builder(configuration, state, engine, base)


async def run_endpoint(path: Path, state_root: Path) -> int:
    """`prebinder serve`: until SIGTERM. Returns the exit code."""
    # Here: a controller apart needs none of it.
    from prebinder_site.app import create_app

    state = StateFolder(state_root)
    state.create()
    configuration = load(path)
    hub = configuration.hub
    if hub.url is None or hub.token is None:
        raise ConfigurationError("hub.url and hub.token are needed: the launch endpoint hands off to that JupyterHub.")
    listener = compose.listen(configuration.site.address, configuration.site.port, "site.port")
    controller = configuration.controller
    token = _secret(controller.token)
    async with contextlib.AsyncExitStack() as parts:
        parts.callback(listener.close)
        client = await parts.enter_async_context(
            compose.controller_client(controller.url or f"http://{controller.address}:{controller.port}", token=token)
        )
        images = create_image_store(configuration.registry)
        parts.push_async_callback(images.aclose)
        hosts = create_hosts(configuration.hosts, state.git_cache)
        settings = compose.endpoint_settings(
            configuration,
            state,
            hosts,
            public_url=compose.public_url(configuration, listener.getsockname()[1]),
            hub_api_url=f"{hub.url.rstrip('/')}/hub/api/",
            hub_public_url=hub.public_url or hub.url,
            hub_token=hub.token.read(),
        )
        app = create_app(settings, controller=client, images=images, hosts=hosts)
        await parts.enter_async_context(compose.served(app, sockets=[listener]))
        log.info("endpoint.ready", url=settings.public_url)
        await until_signal()
    return 0


@contextlib.asynccontextmanager
async def broken_off(stopped: asyncio.Future[None], lost: asyncio.Event | None) -> AsyncIterator[None]:
    """Break off the block when it is over before its end (see `until_over`): a start that hangs must not go on as the
    active controller. Without a Lease it comes to its end."""
    if lost is None:
        yield
        return
    limit = asyncio.timeout(None)

    async def end() -> None:
        await _over(stopped, lost)
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with limit:
            ending = asyncio.create_task(end())
            try:
                yield
            finally:
                ending.cancel()
                await asyncio.wait([ending])
    except TimeoutError:
        if not limit.expired():
            raise


async def until_over(stopped: asyncio.Future[None], lost: asyncio.Event | None) -> None:
    """Return when `stopped` is done. Raises EngineError when the Lease is lost before."""
    if lost is None:
        await stopped
        return
    await _over(stopped, lost)
    if not stopped.done():
        raise EngineError(
            "The Lease is lost: another controller may be active. This one ends, to stand by when it is started again."
        )


async def _over(stopped: asyncio.Future[None], lost: asyncio.Event) -> None:
    losing = asyncio.ensure_future(lost.wait())
    first: list[asyncio.Future[Any]] = [losing, stopped]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    finally:
        losing.cancel()


async def until_signal() -> None:
    """Return at the first SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _secret(reference: SecretRef | None) -> SecretStr | None:
    return reference.read() if reference else None
