"""What JupyterHub's own configuration imports: temporary users, the click's image and token, scopes, culling.

    # jupyterhub_config.py
    from prebinder_site.jupyterhub import configure
    configure(get_config())  # reads the file that PREBINDER_HUB_SETTINGS names

Guarantees:
- Only images whose name begins with the configured prefix are started, whatever a request says.
- A user's server holds no key to the Hub: it is entered with the launch's own token, and the Hub's is taken away.
- The tokens of Prebinder and of the culler may do what they need and no more.

`PrebinderSpawner` goes in front of any container spawner that has an `image` (DockerSpawner on one machine,
KubeSpawner on Kubernetes), as BinderHub's mixin does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from tornado import web
from traitlets import Unicode
from traitlets.config import Configurable

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Spawner
else:
    _Spawner = Configurable

SETTINGS_VARIABLE = "PREBINDER_HUB_SETTINGS"

# `name:tag`, `name@digest` or both (OCI distribution specification; Docker's reference grammar).
_REFERENCE = re.compile(
    r"[a-z0-9]+(?:[._:/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
# Whatever Jupyter the image has, newest first: images that BinderHub built years ago have only the last.
_START = (
    'for j in jupyter-lab jupyter-server jupyter-notebook; do command -v $j >/dev/null && exec $j "$@"; done; exit 127'
)
COMMAND = ["sh", "-c", _START, "jupyter"]
_BINDER_OPTIONS = ("repo_url", "binder_ref_url", "binder_launch_host", "binder_request", "binder_persistent_request")


class HubSettings(BaseModel):
    """The settings file: written by whoever starts the Hub, readable by its owner only. Times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public_bind_url: str
    """Where the proxy listens for browsers."""
    hub_port: int
    """Where the Hub listens, on 127.0.0.1: neither users' servers nor other machines reach it."""
    proxy_api_url: str
    proxy_token: SecretStr
    prebinder_token: SecretStr
    culler_token: SecretStr
    database: str
    """SQLAlchemy URL."""
    cookie_secret_file: Path
    image_prefix: str
    spawner: str = "prebinder_site.container_spawner.ContainerSpawner"
    """The spawner's class, by its full name."""
    engine_socket: Path | None = None
    engine_network: str = "bridge"
    engine_labels: dict[str, str] = Field(default_factory=dict)
    pull: bool = False
    """Images come from a registry; else they are in the engine's own store, and nothing is ever pulled."""
    registry_credentials: Path | None = None
    """A Docker `config.json`."""
    memory: int = 2 * 10**9
    cpu: float = 0.0
    start_timeout: float = 120.0
    max_servers: int = 0
    idle: float = 600.0
    """The culler's time limit: activity must be looked at more often than that."""
    allow_origin: str = "*"


class LaunchOptions(BaseModel):
    """The user options of a launch. What does not fit never reaches the engine."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image: str = Field(max_length=600)
    token: str = Field(min_length=22, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")
    repo_url: str = Field("", max_length=4096)
    binder_ref_url: str = Field("", max_length=4096)
    binder_launch_host: str = Field("", max_length=4096)
    binder_request: str = Field("", max_length=4096)
    binder_persistent_request: str = Field("", max_length=4096)


def check_options(options: Any, image_prefix: str) -> LaunchOptions:
    """The launch's options. Raises ValueError in words for people."""
    try:
        checked = LaunchOptions.model_validate(options)
    except ValidationError as error:
        names = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
        raise ValueError(f"These user options of a launch are missing or malformed: {names or 'all'}.") from None
    if not checked.image.startswith(image_prefix) or not _REFERENCE.fullmatch(checked.image):
        raise ValueError(f"Only images whose name begins with {image_prefix} are started here.")
    if any(not getattr(checked, name).isprintable() for name in _BINDER_OPTIONS):
        raise ValueError("A user option of the launch has control characters.")
    return checked


class PrebinderSpawner(_Spawner):  # type: ignore[misc]
    """Mixin: starts the image of the click with the token of the click."""

    image_prefix = Unicode(help="What every image's name must begin with.").tag(config=True)
    cors_allow_origin = Unicode(
        help="Origins whose pages may talk to users' servers (thebe, MyST); `*` for all, empty for none."
    ).tag(config=True)

    def start(self) -> Any:
        try:
            options = check_options(self.user_options, self.image_prefix)
        except ValueError as error:
            refusal = web.HTTPError(400, str(error))
            refusal.jupyterhub_message = str(error)  # type: ignore[attr-defined]
            raise refusal from None
        self.image = options.image
        return super().start()

    def get_args(self) -> list[str]:
        """The server's own token instead of the Hub's login, so that images need no JupyterHub inside."""
        options = check_options(self.user_options, self.image_prefix)
        arguments = {
            "ip": "0.0.0.0",  # noqa: S104 — inside the container
            "port": str(self.port),
            "base_url": self.server.base_url,
            "token": options.token,
            "trust_xheaders": "True",
        }
        if self.default_url:
            arguments["default_url"] = self.default_url
        if self.cors_allow_origin:
            arguments["allow_origin"] = self.cors_allow_origin
        if self.cors_allow_origin == "*":
            # `*` alone does not let pages fetch single files (jupyter/notebook#5898).
            arguments["allow_origin_pat"] = ".*"
        # Images with a classic notebook know the same options under its own name.
        named = [f"--{app}.{k}={v}" for app in ("NotebookApp", "ServerApp") for k, v in arguments.items()]
        return [*named, f"--IdentityProvider.token={options.token}", *self.args]

    def get_env(self) -> dict[str, str]:
        """The click's addresses for the person's own code, and no key to the Hub."""
        env: dict[str, str] = super().get_env()
        for name in ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "JUPYTERHUB_CLIENT_ID"):
            env.pop(name, None)
        options = check_options(self.user_options, self.image_prefix)
        for name in _BINDER_OPTIONS:
            variable = name.upper() if name.startswith("binder_") else f"BINDER_{name.upper()}"
            if value := getattr(options, name):
                env[variable] = value
        return env


def taken_by_start(spawner: Any, options: Any) -> None:
    """`PrebinderSpawner.start` checks and takes the options; without this the Hub warns that nobody did."""


def read_settings(path: Path | None = None) -> HubSettings:
    """The settings file at `path`, or the one that the environment names."""
    chosen = path or Path(os.environ[SETTINGS_VARIABLE])
    return HubSettings.model_validate_json(chosen.read_bytes())


def configure(c: Any, settings: HubSettings | None = None) -> HubSettings:
    """Set the Hub's configuration `c` (traitlets). Returns the settings used."""
    s = settings or read_settings()

    c.JupyterHub.authenticator_class = "null"
    c.JupyterHub.bind_url = s.public_bind_url
    c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{s.hub_port}"
    c.JupyterHub.db_url = s.database
    c.JupyterHub.cookie_secret_file = str(s.cookie_secret_file)
    # The start of a server answers at once; its progress is followed as a stream.
    c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
    c.JupyterHub.active_server_limit = s.max_servers
    # Seconds that whoever finds too many servers starting is told to wait; half a minute by default.
    c.JupyterHub.spawn_throttle_retry_range = (2, 8)
    # Whoever starts the Hub starts and ends proxy and containers too.
    c.JupyterHub.cleanup_servers = False
    c.JupyterHub.cleanup_proxy = False
    c.ConfigurableHTTPProxy.should_start = False
    c.ConfigurableHTTPProxy.api_url = s.proxy_api_url
    c.ConfigurableHTTPProxy.auth_token = s.proxy_token.get_secret_value()
    # Activity comes from the proxy; it must be seen sooner than the culler acts on it.
    c.JupyterHub.last_activity_interval = max(1, int(min(60, s.idle / 2)))
    c.JupyterHub.activity_resolution = max(1, int(min(30, s.idle / 4)))

    c.JupyterHub.services = [
        {"name": "prebinder", "api_token": s.prebinder_token.get_secret_value()},
        {"name": "idle-culler", "api_token": s.culler_token.get_secret_value()},
    ]
    c.JupyterHub.load_roles = [
        {
            "name": "prebinder",
            "services": ["prebinder"],
            # Create and delete users, start servers, follow their progress.
            "scopes": ["admin:users", "start:servers", "read:servers"],
        },
        {
            "name": "idle-culler",
            "services": ["idle-culler"],
            "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers", "delete:users"],
        },
        # Users never log in.
        {"name": "user", "scopes": []},
    ]

    c.JupyterHub.spawner_class = s.spawner
    c.Spawner.cmd = COMMAND
    c.Spawner.apply_user_options = taken_by_start
    c.Spawner.start_timeout = int(s.start_timeout)
    c.Spawner.http_timeout = int(s.start_timeout)
    c.Spawner.mem_limit = s.memory
    if s.cpu:
        c.Spawner.cpu_limit = s.cpu
    c.PrebinderSpawner.image_prefix = s.image_prefix
    c.PrebinderSpawner.cors_allow_origin = s.allow_origin
    if s.engine_socket is not None:
        c.ContainerSpawner.client_kwargs = {"base_url": f"unix://{s.engine_socket}", "timeout": 120}
        c.ContainerSpawner.network_name = s.engine_network
        c.ContainerSpawner.engine_labels = s.engine_labels
        c.ContainerSpawner.pull_policy = "ifnotpresent" if s.pull else "never"
        if s.registry_credentials is not None:
            c.ContainerSpawner.registry_credentials = str(s.registry_credentials)
    return s
