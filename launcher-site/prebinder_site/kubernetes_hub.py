"""What JupyterHub's configuration imports on Kubernetes: the click's image as a pod, by KubeSpawner.

With the zero-to-jupyterhub chart (`hub.extraConfig`), after everything that chart sets:

    from prebinder_site.kubernetes_hub import ServerSettings, configure
    configure(c, ServerSettings(image_prefix="registry.example.org/binder/"))

Guarantees, beside those of `prebinder_site.jupyterhub`, whose mixin and checks these are:
- A server's pod has no service account token, no capability, no way to more privileges, and is never root; with
  `user_namespaces` its users are nobody on the node.
- A server that cannot start because its image cannot be pulled says so in seconds, not when the time is up.

Needs only what the Hub's own image has: JupyterHub, KubeSpawner, pydantic.
"""

from __future__ import annotations

import time
from typing import Any

from kubespawner import KubeSpawner
from pydantic import BaseModel, ConfigDict, Field
from traitlets import Float

from prebinder_site import jupyterhub
from prebinder_site.jupyterhub import PrebinderSpawner

# The kubelet's words while it cannot get an image (pkg/kubelet/images/types.go).
_NEVER = ("InvalidImageName", "ErrImageNeverPull")
_TRYING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
# What registries and runtimes say when trying again will not help.
_FINAL_WORDS = ("not found", "not exist", "denied", "unauthorized", "403 forbidden")
_MAX_REASON = 200


class ImagePullFailed(Exception):
    """The image of a server cannot be pulled. `jupyterhub_message` is what the click is told."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.jupyterhub_message = message


class ServerSettings(BaseModel):
    """How people's servers run. Sizes are KubeSpawner's: bytes, or text such as `2G`; times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_prefix: str = Field(min_length=1)
    """What every image's name must begin with: `registry.prefix` of Prebinder's configuration."""
    allow_origin: str = "*"
    """Origins whose pages may talk to servers (thebe, MyST)."""
    user: int = Field(1000, ge=1)
    """User id in the pod; repo2docker's images have 1000."""
    user_namespaces: bool = False
    """`hostUsers: false`: ids in the pod are nobody on the node. Needs Kubernetes 1.33 and a file system that can."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets with the registry's credentials, in the namespace of the servers."""
    pull_patience: float = Field(45.0, ge=0)
    """How long a pull may go on failing for a reason that may pass, such as a registry that is away."""


class PrebinderKubeSpawner(PrebinderSpawner, KubeSpawner):  # type: ignore[misc]
    """One pod a click."""

    pull_patience = Float(45.0, help="Seconds for which pulling an image may go on failing.").tag(config=True)

    _pull_fails_since: float | None = None

    def start(self) -> Any:
        self._pull_fails_since = None
        return super().start()

    def is_pod_running(self, pod: Any) -> bool:
        """As KubeSpawner's, which is asked again and again while a server starts; raises ImagePullFailed."""
        if failure := pull_failure(pod):
            now = time.monotonic()
            if self._pull_fails_since is None:
                self._pull_fails_since = now
            reason, final = failure
            if final or now - self._pull_fails_since >= self.pull_patience:
                raise ImagePullFailed(f"The image {self.image} cannot be pulled: {reason}")
        else:
            self._pull_fails_since = None
        return bool(super().is_pod_running(pod))


def pull_failure(pod: Any) -> tuple[str, bool] | None:
    """Why the image of a pod (a Kubernetes object as a mapping) does not come, in one line, and whether trying again
    cannot help; None while nothing is wrong."""
    for container in ((pod or {}).get("status") or {}).get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason in _NEVER or reason in _TRYING:
            said = " ".join(str(waiting.get("message") or reason).split())
            final = reason in _NEVER or any(words in said.lower() for words in _FINAL_WORDS)
            # The cause stands at the end, after the image's name, which the kubelet repeats.
            return (said if len(said) <= _MAX_REASON else "…" + said[1 - _MAX_REASON :]), final
    return None


def configure(c: Any, settings: ServerSettings) -> None:
    """Set the Hub's configuration `c` (traitlets): spawner, pods, no logins. The rest is the Hub's installation's."""
    c.JupyterHub.authenticator_class = "null"
    c.JupyterHub.allow_named_servers = False
    c.JupyterHub.spawner_class = PrebinderKubeSpawner
    # The start of a server answers at once; its progress is followed as a stream.
    c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
    # Seconds that whoever finds too many servers starting is told to wait; half a minute by default.
    c.JupyterHub.spawn_throttle_retry_range = (2, 8)
    # Servers live on when the Hub is started again.
    c.JupyterHub.cleanup_servers = False
    # Of anybody's repositories some never start. zero-to-jupyterhub's Hub would end itself at five in a row.
    c.Spawner.consecutive_failure_limit = 0
    c.Spawner.cmd = list(jupyterhub.COMMAND)
    c.Spawner.apply_user_options = jupyterhub.taken_by_start
    c.PrebinderSpawner.image_prefix = settings.image_prefix
    c.PrebinderSpawner.cors_allow_origin = settings.allow_origin
    c.PrebinderKubeSpawner.pull_patience = settings.pull_patience
    k = c.KubeSpawner
    k.image_pull_policy = "IfNotPresent"
    k.image_pull_secrets = list(settings.pull_secrets)
    k.automount_service_account_token = False
    k.service_account = None
    k.storage_pvc_ensure = False
    k.privileged = False
    k.uid = settings.user
    k.container_security_context = {
        "runAsUser": settings.user,
        "runAsNonRoot": True,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if settings.user_namespaces:
        # Beside what the installation says of pods.
        k.extra_pod_config.update({"hostUsers": False})
