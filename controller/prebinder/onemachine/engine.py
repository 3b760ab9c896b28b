"""The container engine of one instance of Prebinder: found, set up apart from everything else, stopped wholly.

Guarantees:
- Nothing outside the state folder is configured: podman gets its storage, network, registries and limits by
  environment. Two instances on one machine (a running Prebinder and its tests) never meet: own storage, own bridge,
  own subnet.
- Leaving `start_engine` leaves no process, container, mount, bridge or firewall rule behind; images stay. After
  `kill -9` the next start clears the same away first (`clear_leftovers`).
- Builds and servers run as containers in that bridge network, never in the host's.

How certificates get into builds: the machine's own CAs (`/usr/local/share/ca-certificates/*.crt`) are part of the base
image that `base_image.py` makes; images built on other bases trust what those bases trust.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import httpx
import structlog

from prebinder.builders.engine import PASSED_ON, Engine, attempt, call, last_line
from prebinder.model.failure import EngineError
from prebinder.onemachine import leftovers
from prebinder.onemachine.place import Place, network_name, write_configuration

log = structlog.get_logger(__name__)

EngineChoice = Literal["auto", "podman", "docker"]
INSTANCE_LABEL = "prebinder.instance"
_PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "iptables", "uidmap", "iproute2")
_INSTALL_LINE = f"sudo apt-get install --no-install-recommends {' '.join(_PACKAGES)}"
_ROOT_ONLY = "Start Prebinder as root (sudo make up), or start Docker and be in its group."
_STEADY = 60.0  # a service that ran so long, in seconds, is started again at once


@contextlib.asynccontextmanager
async def start_engine(
    state: Path,
    choice: EngineChoice = "auto",
    *,
    install: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Engine]:
    """An engine for the instance whose state folder is `state`, until the block ends.

    `auto` takes podman when it works, else docker when it answers. With `install`, a missing podman is installed where
    that is allowed (root on Debian or Ubuntu). Raises EngineError that says what to do when there is none.
    """
    problem = ""
    if choice in ("auto", "podman"):
        wanted = install and os.geteuid() == 0 and shutil.which("podman") is None
        if wanted and (choice == "podman" or not await _docker_answers()):
            await install_engine(say)
        try:
            engine = await _prepare_podman(Place.of(state))
        except EngineError as error:
            problem = str(error)
            if choice == "podman":
                raise
        else:
            async with _podman_service(Place.of(state), engine):
                yield engine
            return
    if not await _docker_answers():
        hint = f"Run: {_INSTALL_LINE}" if os.geteuid() == 0 else _ROOT_ONLY
        hint = "Start Docker, or set builder.engine: podman." if choice == "docker" else hint
        reason = f"docker does not answer on {_docker_socket()}"
        raise EngineError(f"No container engine is usable ({'; '.join(filter(None, (problem, reason)))}). {hint}")
    place = Place.of(state)
    place.folder.mkdir(parents=True, exist_ok=True)
    engine = Engine(
        "docker",
        {"DOCKER_HOST": f"unix://{_docker_socket()}", "HOME": str(place.folder)},
        _docker_socket(),
        labels={INSTANCE_LABEL: place.instance},
    )
    await call(engine, "buildx", "version")
    await _remove_labelled(engine)
    try:
        yield engine
    finally:
        await _remove_labelled(engine)


async def install_engine(say: Callable[[str], None]) -> None:
    """Install podman where that is allowed: as root on Debian and Ubuntu. Raises EngineError with the line to run."""
    await install_packages(_PACKAGES, "the container engine podman", say)


async def install_packages(packages: tuple[str, ...], what: str, say: Callable[[str], None]) -> None:
    """Install Debian packages without questions. Raises EngineError with the line to run where that is not allowed."""
    line = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        names = " ".join(packages)
        raise EngineError(f"{what.capitalize()} is not installed. Install it with your system's package tool: {names}")
    if os.geteuid() != 0:
        raise EngineError(f"{what.capitalize()} is not installed, and only root may install it. Run: sudo {line}")
    say(f"Installing {what} with apt (about 15 s) …")
    environment = {k: os.environ[k] for k in PASSED_ON if k in os.environ} | {"DEBIAN_FRONTEND": "noninteractive"}
    wait = ["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2"]
    await attempt(["apt-get", *wait, "-q", "update"], environment, 300)
    command = ["apt-get", *wait, "-q", "-y", "--no-install-recommends", "install", *packages]
    code, _, errors = await attempt(command, environment, 900)
    if code != 0:
        raise EngineError(f"{what.capitalize()} could not be installed: {last_line(errors)}. Run: {line}")


async def clear_leftovers(state: Path) -> None:
    """End and remove what an instance left after `kill -9`: containers, processes, mounts, bridge, firewall rules.

    Images stay. Does nothing, quickly, when nothing is left.
    """
    await asyncio.to_thread(_clear, Place.of(state))


async def _prepare_podman(place: Place) -> Engine:
    """Write podman's configuration for this instance and see that it works. Raises EngineError."""
    if os.geteuid() != 0:
        # Its bridge is then in a network namespace of its own, in which the Hub does not find the servers.
        raise EngineError(f"podman of an ordinary user is not supported. {_ROOT_ONLY}")
    if shutil.which("podman") is None:
        raise EngineError("podman is not installed")
    await asyncio.to_thread(_clear, place)
    try:
        return await _configured_podman(place)
    except BaseException:
        # A podman that was ended in the middle leaves its storage mounted.
        await asyncio.shield(asyncio.to_thread(_clear, place))
        raise


async def _configured_podman(place: Place) -> Engine:
    await asyncio.to_thread(write_configuration, place)
    engine = Engine(
        "podman",
        place.environment(),
        place.socket,
        network=network_name(place),
        storage=place.storage,
        labels={INSTANCE_LABEL: place.instance},
    )
    version = await call(engine, "version", "--format", "{{.Client.Version}}")
    if int(version.split(".")[0]) < 4:
        raise EngineError(f"podman {version.strip()} is too old; Prebinder needs podman 4 or newer")
    await call(engine, "info", "--format", "{{.Store.GraphDriverName}}")
    return engine


@contextlib.asynccontextmanager
async def _podman_service(place: Place, engine: Engine) -> AsyncIterator[None]:
    """Serve the Docker API until the block ends, started again when it ends by itself; then clear everything away."""
    started = asyncio.Event()
    supervising = asyncio.create_task(_supervise(place, engine, started))
    try:
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({waiting, supervising}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        waiting.cancel()
        if supervising.done():
            await supervising
        if not started.is_set():
            raise EngineError("podman's service did not answer within 30 s.")
        yield
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        await asyncio.shield(asyncio.to_thread(_clear, place))


async def _supervise(place: Place, engine: Engine, started: asyncio.Event) -> None:
    pause = 0.2
    while True:
        began = time.monotonic()
        try:
            code = await _serve(place, engine, started)
            log.warning("engine.service_ended", code=code)
        except (EngineError, OSError) as error:
            if not started.is_set():
                raise
            log.error("engine.service_not_started", reason=str(error), again_in=pause)
        if time.monotonic() - began > _STEADY:
            pause = 0.2
        await asyncio.sleep(pause)
        pause = min(pause * 2, 30)


async def _serve(place: Place, engine: Engine, started: asyncio.Event) -> int:
    """Run the service once; its exit code. Raises EngineError or OSError when it does not start."""
    place.socket.unlink(missing_ok=True)
    # setpriv: the service ends with us, however we end.
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "TERM", "podman", "--log-level", "error"),
        *("system", "service", "--time", "0", f"unix://{place.socket}"),
        env=engine.full_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await _wait_until_answers(process, place.socket)
        started.set()
        return await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _wait_until_answers(process: asyncio.subprocess.Process, socket: Path) -> None:
    pause = 0.02
    while not await answers(socket):
        if process.returncode is not None:
            raise EngineError(f"podman's service ended at once with exit code {process.returncode}.")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)


async def answers(socket: Path) -> bool:
    """Whether an engine answers on `socket`."""
    if not socket.exists():
        return False
    try:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket)), timeout=5) as client:
            return (await client.get("http://engine/_ping")).status_code == 200
    except httpx.HTTPError:
        return False


def _docker_socket() -> Path:
    host = os.environ.get("DOCKER_HOST", "")
    return Path(host.removeprefix("unix://")) if host.startswith("unix://") else Path("/var/run/docker.sock")


async def _docker_answers() -> bool:
    return shutil.which("docker") is not None and await answers(_docker_socket())


async def _remove_labelled(engine: Engine) -> None:
    """docker: remove the containers that carry this instance's label."""
    wanted = [f"--filter=label={key}={value}" for key, value in engine.labels.items()]
    if found := (await call(engine, "ps", "--all", "--quiet", *wanted)).split():
        await call(engine, "rm", "--force", "--volumes", *found)


def _clear(place: Place) -> None:
    """Containers first and in podman's own way, so that it tidies its network; then whatever is still there."""
    if not place.folder.exists():
        return
    if place.storage_conf.exists() and shutil.which("podman"):
        environment = {k: os.environ[k] for k in PASSED_ON if k in os.environ} | place.environment()
        _remove_containers(environment)
    leftovers.end_processes(place.storage, str(place.storage_conf))
    leftovers.end_processes(place.storage, str(place.run))
    leftovers.unmount_below(place.folder)
    leftovers.remove_interface(place.interface)
    with contextlib.suppress(OSError):
        if os.geteuid() == 0:
            leftovers.remove_rules(place.subnet_file.read_text().strip())
    place.socket.unlink(missing_ok=True)


def _remove_containers(environment: dict[str, str]) -> None:
    def podman(*arguments: str, timeout: float = 30) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                ["podman", *arguments],
                env=environment,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
                text=True,
            ).stdout
        return ""

    if containers := podman("ps", "--all", "--external", "--quiet", "--no-trunc").split():
        podman("rm", "--force", "--time", "0", "--volumes", *containers)
