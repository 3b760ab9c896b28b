"""Credentials from a Docker `config.json`, found for a registry as Docker finds them. Pure, but for reading the file.

Source of the format: Docker's `config.json` (`auths`: registry → `auth`, base64 of `user:password`, or an
`identitytoken`). Credential helpers (`credsStore`, `credHelpers`) run programs; they are named in an error instead.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prebinder.model.failure import RegistryError

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a secret; `identity_token` instead of a password where the registry gave one."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)


def read_credentials(path: Path, registry: str) -> Credentials | None:
    """What the file says for `registry` (host and port), or None. Raises RegistryError when it cannot be used."""
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise RegistryError(f"The registry's credentials file {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise RegistryError(f"The registry's credentials file {path} is not JSON.") from None
    if not isinstance(config, dict):
        raise RegistryError(f"The registry's credentials file {path} is not a Docker config.json.")
    return find_credentials(config, registry, path)


def find_credentials(config: dict[str, Any], registry: str, path: Path) -> Credentials | None:
    """The same from what the file holds."""
    auths = config.get("auths") or {}
    wanted = _host(registry)
    for key, entry in auths.items():
        if _host(key) == wanted and isinstance(entry, dict) and (found := _entry(entry, path, registry)):
            return found
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    if helper:
        raise RegistryError(
            f"{path} keeps the credentials of {registry} in the helper docker-credential-{helper}, which Prebinder "
            'does not run. Write them into "auths" of a file for Prebinder alone.'
        )
    return None


def _host(name: str) -> str:
    """The host of a key of `auths`, which may be an address (`https://index.docker.io/v1/`); aliases of Docker Hub are
    one."""
    host = name.split("://", 1)[-1].split("/", 1)[0].lower()
    return "docker.io" if host in _DOCKER_HUB else host


def _entry(entry: dict[str, Any], path: Path, registry: str) -> Credentials | None:
    token = entry.get("identitytoken") or None
    if auth := entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, TypeError):
            colon = username = password = ""
        if not colon:
            raise RegistryError(f'"auth" of {registry} in {path} is not the base64 of user:password.')
        return Credentials(username, password.rstrip("\0"), token)
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password", "")), token)
    return Credentials("", "", token) if token else None
