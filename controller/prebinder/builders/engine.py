"""How to reach one container engine, and one call of its command line.

An `Engine` is a value: where the engine listens and which environment its command line needs to find it. Finding and
starting one is `onemachine/engine.py`; a controller elsewhere may be given one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prebinder.model.failure import EngineError
from prebinder.processes import end

# What an engine's command line may know of our own environment: no secret of ours is among it. Proxies and
# certificates are the machine's and are needed to reach registries and Git hosts.
PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)


@dataclass(frozen=True, slots=True)
class Engine:
    """One container engine of one instance of Prebinder."""

    kind: Literal["podman", "docker"]
    environment: Mapping[str, str]
    """What the command line needs in its environment to reach this engine, beyond `PASSED_ON`."""
    socket: Path
    """The Unix socket on which it speaks Docker's HTTP API."""
    network: str = "bridge"
    """Name of the bridge network that containers of this instance join."""
    storage: Path | None = None
    """Where podman keeps layers (`overlay/<id>/diff` below); None for docker."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that mark a container as this instance's, so that it is found again after a crash."""

    def full_environment(self) -> dict[str, str]:
        """The whole environment for a process that calls the command line."""
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        # Never the person's own registries and credentials: `/root/.docker` and its like.
        home = {"HOME": self.environment.get("HOME", os.environ.get("HOME", "/"))}
        return {**kept, **home, **self.environment}


async def call(engine: Engine, *arguments: str | Path, timeout: float = 60.0, stdin: bytes | None = None) -> str:
    """Run the engine's command line once; its standard output.

    Raises EngineError with the last line it wrote when it fails, is missing, or takes longer than `timeout` seconds.
    """
    code, output, errors = await attempt([engine.kind, *map(str, arguments)], engine.full_environment(), timeout, stdin)
    if code != 0:
        raise EngineError(f"{engine.kind} {arguments[0]} failed: {last_line(errors) or f'exit code {code}'}")
    return output


async def attempt(
    command: Sequence[str], environment: Mapping[str, str], timeout: float, stdin: bytes | None = None
) -> tuple[int, str, str]:
    """Run a command to its end: exit code, standard output, standard error. It never outlives the call.

    Raises EngineError when the program is missing or takes longer than `timeout` seconds.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be started: {error.strerror}.") from None
    try:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate(stdin)
    except TimeoutError:
        raise EngineError(f"{' '.join(command[:2])} did not end within {timeout:.0f} s.") from None
    finally:
        await end(process)
    assert process.returncode is not None
    return process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def last_line(text: str) -> str:
    """The last line that says something, at most 300 characters of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ")[:300] if lines else ""
