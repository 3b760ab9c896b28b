"""What the controller tells the containers of a build's pod, and what they answer. Nothing here is secret.

The order comes as the environment variable `PREBINDER_ORDER` (JSON). The build container speaks the lines of
`builders/child.py` on its log. The push container's last word is its termination message: a `PushReport`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

ORDER = "PREBINDER_ORDER"
CACHE_TAG = "buildcache"
"""Beside the images of a repository: an index of the layers that its builds made. No revision looks like it."""

# Exit codes of the build container beyond repo2docker's 0 and 1.
EXIT_TIMEOUT = 124
EXIT_LOG = 125
EXIT_ROOT = 123
"""Not begun: it would have run as the node's root."""

# The store in the builder image that holds the base image of pip builds (images/build.py, `preload`), and its name.
PRELOADED = "/usr/lib/containers/storage"
PRELOADED_BASE = "localhost/prebinder/base:latest"

# Where the pod's volumes are.
STORAGE = "/var/lib/containers"
WORK = "/work"
IMAGE = "/image"
FETCHED = "/fetched"
CREDENTIALS = "/run/registry/config.json"
CERTIFICATES = "/run/certificates"


class Role(StrEnum):
    """The containers of the pod, in the order in which they run."""

    FETCH = "fetch"
    """Pulls base image and layer cache from our registry. Runs nothing of the repository."""
    BUILD = "build"
    """Clones, and runs the repository's build steps. Knows no secret."""
    PUSH = "push"
    """Pushes what was built. Runs nothing of the repository; alone has the credentials to push."""


class PodOrder(BaseModel):
    """What to do. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True)

    clone_url: str
    revision: str
    image_name: str
    image_tag: str
    build_pack: str
    base_image: str | None
    all_providers: bool
    memory_limit: int
    time_limit: float
    log_limit: int
    disk_limit: int
    processes: int
    insecure: bool
    """The registry speaks plain HTTP."""
    registry_timeout: float
    storage: Literal["overlay", "vfs"]
    """How buildah keeps layers. With `overlay` builds may stand on the base image that the builder image holds."""
    read_cache: bool
    write_cache: bool

    @property
    def image(self) -> str:
        return f"{self.image_name}:{self.image_tag}"

    @property
    def registry(self) -> str:
        """Host and port."""
        return self.image_name.partition("/")[0]

    @property
    def our_base(self) -> str | None:
        """The base image, where our registry has it: then its layers are never copied."""
        return self.base_image if self.base_image and self.base_image.startswith(f"{self.registry}/") else None


class PushReport(BaseModel):
    """The push container's termination message (at most 4096 bytes)."""

    model_config = ConfigDict(frozen=True)

    digest: str | None = None
    """Of the manifest that was pushed."""
    problem: str | None = None
    """Else: why not, for people."""
    repository_fault: bool = False
    """What was built cannot be pushed, whoever tries."""
