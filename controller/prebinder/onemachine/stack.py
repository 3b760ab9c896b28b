"""Everything on one machine: `prebinder up`.

Starts the container engine, the base image, JupyterHub with its proxy and culler, the demo's Git server, the controller
and the launch endpoint; stops all of it at the first Ctrl-C. Guarantees:
- One instance a state folder (a lock that dies with the process), any number of instances a machine.
- What a `kill -9` left running is cleared away first; what it left undone is gone on with.
- Whatever fails while starting is one or two lines that say what to do, and nothing is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import structlog
from pydantic import SecretStr
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder import compose
from prebinder.builders.engine import Engine, call
from prebinder.config import Configuration, LiveConfiguration, load
from prebinder.config.state import StateFolder
from prebinder.hosts.table import create_hosts
from prebinder.model.failure import PrebinderError
from prebinder.onemachine.base_image import pip_base_image
from prebinder.onemachine.defaults import default_configuration
from prebinder.onemachine.demo import create_demo
from prebinder.onemachine.engine import start_engine
from prebinder.onemachine.exclusive import exclusive
from prebinder.onemachine.git_http import GitHttp
from prebinder.onemachine.hub import HubProcess, install_proxy
from prebinder.onemachine.screen import BuildTicker, Screen
from prebinder.registry import create_image_store
from prebinder_site.app import create_app as create_endpoint

log = structlog.get_logger(__name__)

_STOPPED = "Stopped; nothing is left running. Start again with the same command to go on."


@dataclass(frozen=True, slots=True)
class HubAddress:
    """How to reach a JupyterHub; addresses end in a slash."""

    api_url: str
    public_url: str
    token: SecretStr


class PublicApp:
    """What answers on the site's port: webhooks, the demo's Git server, and the launch endpoint for all the rest.

    The endpoint gets the lifespan. Git is served to names of this machine alone, so that a page of another site cannot
    push by rebinding its own name.
    """

    def __init__(self, endpoint: ASGIApp, hooks: ASGIApp, git: ASGIApp | None, names: list[str]) -> None:
        self._endpoint = endpoint
        self._hooks = hooks
        self._git = TrustedHostMiddleware(git, allowed_hosts=names) if git else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/hooks/"):
            await self._hooks(scope, receive, send)
        elif scope["type"] == "http" and self._git and path.startswith("/git/"):
            await self._git(_below(scope, "/git"), receive, send)
        else:
            await self._endpoint(scope, receive, send)


def _below(scope: Scope, root: str) -> Scope:
    """The scope of an application that is mounted at `root` (ASGI: path keeps it, root_path names it)."""
    return {**scope, "root_path": scope.get("root_path", "") + root}


async def run_stack(config: Path | None, state_root: Path, port: int | None) -> int:
    """`prebinder up`: until Ctrl-C or SIGTERM. Returns the exit code."""
    state = StateFolder(state_root)
    state.create()
    screen = Screen()
    state.see_space()
    with exclusive(state):
        path = config or default_configuration(state, port)
        live = LiveConfiguration(load(path), path)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        running = asyncio.create_task(_run(live, state, screen, port, demo=config is None))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
            screen.line("Stopping …", "dim")
        try:
            await running
        except (BaseExceptionGroup, PrebinderError) as error:
            first = _first(error) if isinstance(error, BaseExceptionGroup) else error
            if not stop.is_set():
                raise first from None
            # Ctrl-C reaches the commands that we were waiting for, too: their end is no failure.
            log.info("stopped", while_starting=str(first))
            screen.line(_STOPPED, "dim")
        except asyncio.CancelledError:
            screen.line(_STOPPED, "dim")
    return 0


async def _run(live: LiveConfiguration, state: StateFolder, screen: Screen, port: int | None, *, demo: bool) -> None:
    """Start everything, then show what happens until cancelled; leaving stops all of it."""
    configuration = live.current
    site = configuration.site
    listener = compose.listen(site.address, site.port if port is None else port, "site.port, or --port")
    async with contextlib.AsyncExitStack() as parts:
        parts.callback(listener.close)
        site_port: int = listener.getsockname()[1]
        url = compose.public_url(configuration, site_port)
        screen.line("Starting Prebinder …", "bold")
        with screen.starting():
            engine = await parts.enter_async_context(_engine(configuration, state, screen))
            images = create_image_store(configuration.registry, engine.socket)
            parts.push_async_callback(images.aclose)
            async with asyncio.TaskGroup() as group:
                base = group.create_task(_base_image(configuration, engine, screen))
                hub = group.create_task(_hub(configuration, state, engine, site_port, screen, parts))
            with screen.step("controller and launch endpoint"):
                git = _demo(state, site_port) if demo else None
                running = await parts.enter_async_context(
                    compose.started_controller(
                        live,
                        state,
                        builder=compose.local_builder(configuration, state, engine, base.result()),
                        images=images,
                        hosts=create_hosts(configuration.hosts, state.git_cache),
                    )
                )
                await parts.enter_async_context(compose.served(running.api, uds=state.controller_socket))
                client = await parts.enter_async_context(compose.controller_client(uds=state.controller_socket))
                click_hosts = create_hosts(configuration.hosts, state.git_cache)
                endpoint = create_endpoint(
                    compose.endpoint_settings(
                        configuration,
                        state,
                        click_hosts,
                        public_url=url,
                        hub_api_url=hub.result().api_url,
                        hub_public_url=hub.result().public_url,
                        hub_token=hub.result().token,
                    ),
                    controller=client,
                    images=images,
                    hosts=click_hosts,
                )
                public = PublicApp(endpoint, running.hooks, git, ["127.0.0.1", "localhost", "[::1]"])
                await parts.enter_async_context(compose.served(public, sockets=[listener]))
        _welcome(screen, url, live, demo=demo)
        ticker = BuildTicker(screen)
        async for catalogue in running.controller.catalogue_changes():
            ticker.show(catalogue)


@contextlib.asynccontextmanager
async def _engine(configuration: Configuration, state: StateFolder, screen: Screen) -> AsyncIterator[Engine]:
    async with contextlib.AsyncExitStack() as parts:
        with screen.step("container engine") as say:
            engine = await parts.enter_async_context(
                start_engine(state.root, configuration.builder.engine, install=True, say=say)
            )
            version = (await call(engine, "version", "--format", "{{.Client.Version}}")).strip()
            say(f"{engine.kind} {version}")
        yield engine


async def _base_image(configuration: Configuration, engine: Engine, screen: Screen) -> str | None:
    with screen.step("base image of builds") as say:
        return await pip_base_image(configuration, engine, say)


async def _hub(
    configuration: Configuration,
    state: StateFolder,
    engine: Engine,
    site_port: int,
    screen: Screen,
    parts: contextlib.AsyncExitStack,
) -> HubAddress:
    """The Hub that the configuration names, or one of our own."""
    hub = configuration.hub
    if hub.url is not None and hub.token is not None:
        return HubAddress(f"{hub.url.rstrip('/')}/hub/api/", hub.public_url or hub.url, hub.token.read())
    with screen.step("JupyterHub, its proxy and culler"):
        proxy = await install_proxy(platformdirs.user_cache_path("prebinder"))
        registry = configuration.registry
        process = HubProcess(
            state.hub,
            hub,
            engine,
            proxy,
            secret=state.secret,
            image_prefix=registry.image_prefix,
            pull=registry.prefix is not None,
            registry_credentials=registry.credentials,
            address=configuration.site.address,
            preferred_port=site_port + 1,
            public_url=hub.public_url,
            public_host=compose.public_host(configuration),
            allow_origin=configuration.site.allow_origin,
            log_folder=state.log,
        )
        await process.start()
        parts.push_async_callback(process.stop)
        return HubAddress(process.api_url, process.public_url, process.token)


def _demo(state: StateFolder, port: int) -> GitHttp:
    """The demo's repository and the Git server for it."""
    here = f"http://127.0.0.1:{port}"
    secret = state.secret("webhook")
    create_demo(state.demo, f"{here}/git/", f"{here}/hooks/git", secret, Path(sys.executable))
    return GitHttp(state.demo)


def _welcome(screen: Screen, url: str, live: LiveConfiguration, *, demo: bool) -> None:
    screen.line("")
    screen.line(f"Prebinder is ready: {url}", "bold green")
    screen.line("")
    if demo:
        screen.line("Three things to try:", "bold")
        screen.line(f"  1. Open {url} and launch an example; its image is being built now.")
        screen.line("  2. Push a commit, and watch its image being built:")
        screen.line(f"       git clone {url}git/examples.git && cd examples")
        screen.line('       echo "My first change" >> README.md && git commit -am "Try it" && git push')
        screen.line(f"  3. Register a repository of your own in {_short(live.path)}; it is picked up at once.")
    else:
        count = len(live.current.repositories)
        screen.line(f"  {count} {'repository' if count == 1 else 'repositories'} registered in {_short(live.path)}.")
    screen.line("")
    screen.line("Ctrl-C stops everything.", "dim")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What failed first, of things that were started side by side; one that is meant for people before others."""
    flat = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in flat if isinstance(error, PrebinderError)), flat[0])


def _short(path: Path | None) -> str:
    """A path as a person would type it here."""
    if path is None:
        return ""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
