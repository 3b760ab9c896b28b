"""What the launch endpoint needs to know, as one value; the composition root makes it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from prebinder.model.catalogue import RepositoryEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Addresses end in a slash; times are in seconds."""

    public_url: str
    """The site as browsers reach it."""
    site_folder: Path
    """Where the static site is generated; `current` in it is served."""
    state_folder: Path
    """Where the last copy of the catalogue and the launch log are kept."""
    hub_api_url: str
    """`…/hub/api/` of JupyterHub."""
    hub_public_url: str
    """JupyterHub's proxy as browsers reach it."""
    hub_token: SecretStr
    """API token of the Hub's service for Prebinder."""
    image_prefix: str
    """Registry, path and beginning of every image's name."""
    registered: tuple[RepositoryEntry, ...] = ()
    """The repositories of the configuration, without refs: what is known before the controller's first word."""
    on_demand: Literal["registered", "anyone", "none"] = "registered"
    """Whose links may be built, until the controller says."""
    title: str = "Prebinder"
    allow_origin: str = "*"
    """`Access-Control-Allow-Origin` of the event stream and of `/versions`; empty sends none."""
    build_only: bool = True
    """Whether `?build_only=true` is answered."""
    stale_after: float = 60.0
    """A polled ref older than this is resolved again at the click."""
    click_budget: float = 0.3
    """How long a click waits for that."""
    host_timeout: float = 20.0
    """How long a click waits for a Git host when nothing is known to fall back to."""
    start_timeout: float = 120.0
    """Longest start of a user's server."""
    max_servers: int = 0
    """The Hub's limit of running servers, for its message; 0 is none."""
    version: str = ""
    builder_version: str = ""
    hold_open: float = 60.0
    """After `ready` the stream stays open this long, so that clients close first (EventSource reconnects otherwise)."""
    keepalive: float = 20.0
    """Pause between two comment lines of a silent stream; proxies cut silent connections after 30 s or more."""

    def __post_init__(self) -> None:
        for name in ("public_url", "hub_api_url", "hub_public_url"):
            address = getattr(self, name)
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"{name} must start with http:// or https://, not {address!r}")
            object.__setattr__(self, name, address.rstrip("/") + "/")
