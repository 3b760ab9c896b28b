"""The base image of pip builds: a slim Debian with Python, Git, a user, and Jupyter ready to start.

Made once, then kept as one file in the cache folder and imported in seconds wherever the engine's store is empty. On a
machine that reaches a container registry it stands on the public Python image; elsewhere its root file system is made
from Debian's packages by mmdebstrap. Both go through the same set-up script, so that builds meet the same paths:
`/srv/venv` (Jupyter in it, owned by user 1000 `jovyan`) and `/etc/ssl/certs/ca-certificates.crt`, which holds the
machine's own CAs too (`/usr/local/share/ca-certificates/*.crt`): that is how certificates get into builds.

The image's tag is a hash of the recipe and of those CAs: another recipe or another CA makes another image.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import platformdirs

from prebinder.builders.engine import PASSED_ON, Engine, attempt, call, last_line
from prebinder.config import Configuration
from prebinder.model.failure import EngineError
from prebinder.onemachine.engine import install_packages

PUBLIC_BASE = "docker.io/library/python:3.12-slim-bookworm"
_REGISTRY = "https://registry-1.docker.io/v2/"
_SUITE = "bookworm"
_DEBIAN_PACKAGES = ("python3", "python3-venv")
_HOST_CAS = Path("/usr/local/share/ca-certificates")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_ENVIRONMENT = {
    "PATH": "/srv/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "VIRTUAL_ENV": "/srv/venv",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "SHELL": "/bin/bash",
    "SSL_CERT_FILE": _BUNDLE,
    "REQUESTS_CA_BUNDLE": _BUNDLE,
    "PIP_CERT": _BUNDLE,
    "PIP_NO_CACHE_DIR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}

# Runs as root in either root file system; images/base uses it too. `profile.d`: the entry point is a login shell, which
# sets PATH anew.
_SETUP = Path(__file__).with_name("base_setup.sh").read_text()


def recipe_key(authorities: dict[str, bytes]) -> str:
    """Twelve hex digits that change with the recipe or with the machine's own CAs (file name to content)."""
    digest = hashlib.sha256(
        repr((PUBLIC_BASE, _SUITE, _DEBIAN_PACKAGES, _SETUP, sorted(_ENVIRONMENT.items()))).encode()
    )
    for name, content in sorted(authorities.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


async def ensure_base_image(engine: Engine, cache: Path, say: Callable[[str], None]) -> str:
    """The name of the base image in the engine's store; made, or imported from `cache`, when it is not there.

    `say` gets one line for each thing that takes long. Raises EngineError that says what to do.
    """
    authorities = await asyncio.to_thread(_authorities)
    key = recipe_key(authorities)
    name = f"localhost/prebinder-base:{key}"
    if await call(engine, "images", "--quiet", name):
        return name
    cache.mkdir(parents=True, exist_ok=True)
    cached = cache / f"base-{key}.tar"
    if cached.exists():
        say("Importing the base image from the cache …")
        try:
            await _import(engine, cached, name)
        except EngineError:
            cached.unlink(missing_ok=True)  # a damaged file: made anew below
        else:
            return name
    await _make(engine, cache, name, authorities, say)
    await _export(engine, name, cached)
    return name


async def pip_base_image(configuration: Configuration, engine: Engine, say: Callable[[str], None]) -> str | None:
    """The base image of builds with the pip build pack; None when nothing uses the pack or the configuration names a
    base image. Raises EngineError."""
    packs = {configuration.builder.build_pack, *(r.build_pack for r in configuration.repositories)}
    if configuration.builder.base_image is not None or "pip" not in packs:
        return None
    return await ensure_base_image(engine, platformdirs.user_cache_path("prebinder"), say)


def _authorities() -> dict[str, bytes]:
    with contextlib.suppress(OSError):
        return {path.name: path.read_bytes() for path in sorted(_HOST_CAS.glob("*.crt"))}
    return {}


async def _import(engine: Engine, archive: Path, name: str) -> None:
    """One layer from a file; a partial import leaves no tag."""
    changes = [f"--change=ENV {key}={value}" for key, value in _ENVIRONMENT.items()]
    await call(engine, "import", *changes, archive, name, timeout=600)


async def _export(engine: Engine, image: str, archive: Path) -> None:
    """The image's file system as one file, there whole or not at all."""
    container = (await call(engine, "create", "--network=none", image, "true")).strip()
    part = archive.with_suffix(f".{os.getpid()}.part")
    try:
        await call(engine, "export", "--output", part, container, timeout=600)
        part.replace(archive)
    except (EngineError, OSError):
        pass  # only a cache: the image is there
    finally:
        part.unlink(missing_ok=True)
        await call(engine, "rm", "--force", container)


async def _make(
    engine: Engine, cache: Path, name: str, authorities: dict[str, bytes], say: Callable[[str], None]
) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="base-") as folder:
        context = Path(folder)
        root = await _public_root(engine, say) or await _debian_root(engine, context, say)
        say("Setting up Python and Jupyter in the base image (about 30 s) …")
        (context / "ca").mkdir()
        for file, content in authorities.items():
            (context / "ca" / file).write_bytes(content)
        (context / "ca" / ".keep").touch()
        (context / "setup.sh").write_text(_SETUP)
        environment = " ".join(f'{key}="{value}"' for key, value in _ENVIRONMENT.items())
        (context / "Dockerfile").write_text(
            f"FROM {root}\nCOPY ca/ {_HOST_CAS}/\nCOPY setup.sh /tmp/setup.sh\n"
            f"ENV {environment}\nRUN sh /tmp/setup.sh && rm /tmp/setup.sh\n"
        )
        (context / ".dockerignore").write_text("*.tar\n")
        build = ["buildx", "build", "--load"] if engine.kind == "docker" else ["build"]
        await call(engine, *build, "--quiet", "--tag", name, context, timeout=1200)


async def _public_root(engine: Engine, say: Callable[[str], None]) -> str | None:
    """The public Python image, or None where its registry is out of reach or does not give it."""
    try:
        async with httpx.AsyncClient(timeout=4) as client:
            await client.get(_REGISTRY)
    except httpx.HTTPError:
        return None
    say(f"Pulling {PUBLIC_BASE} …")
    try:
        await call(engine, "pull", "--quiet", PUBLIC_BASE, timeout=600)
    except EngineError as error:
        say(f"It could not be pulled ({error}).")
        return None
    return PUBLIC_BASE


async def _debian_root(engine: Engine, folder: Path, say: Callable[[str], None]) -> str:
    """A root file system from Debian's packages, imported as an image."""
    say("No container registry can be reached: making the base image from Debian's packages (about 30 s, once) …")
    if shutil.which("mmdebstrap") is None:
        await install_packages(("mmdebstrap",), "the tool mmdebstrap", say)
    archive = folder / "root.tar"
    environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    environment |= {"TMPDIR": str(folder), "HOME": str(folder)}
    include = f"--include={','.join(_DEBIAN_PACKAGES)},ca-certificates,git"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", include, _SUITE, str(archive)]
    code, _, errors = await attempt(command, environment, 900)
    if code != 0:
        raise EngineError(
            f"The base image could not be made from Debian's packages: {last_line(errors)}. "
            "Set builder.base_image to an image that this machine can pull."
        )
    name = "localhost/prebinder-root:debian"
    await call(engine, "import", archive, name, timeout=600)
    archive.unlink()
    return name
