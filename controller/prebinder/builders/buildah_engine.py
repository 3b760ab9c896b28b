"""repo2docker's container engine plugin for buildah (entry point `prebinder-buildah`), for builds in a pod.

A pod has no engine and no privileges on its node: buildah needs neither. Steps run in a chroot below the pod's own user
namespace, so they see the pod's network and are bounded by the pod's memory. It builds; another container pushes.

Written against buildah 1.28 (Debian 12); its storage is what `storage.conf` of the builder image says.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from platform import machine
from typing import Any

from repo2docker.engine import Image, ImageLoadError
from traitlets import Unicode

from prebinder.builders.podman_engine import PodmanEngine

_INSPECT_TIMEOUT = 60
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class BuildahEngine(PodmanEngine):
    """Builds with the buildah command line."""

    certificates = Unicode("", help="A bundle of certificate authorities that build steps trust.", config=True)

    def build_command(self, **what: Any) -> list[str]:
        """The command of one build."""
        return build_command(certificates=self.certificates, **what)

    def _push(self, tag: str) -> None:
        raise ImageLoadError("Prebinder's buildah engine does not push: it has no credentials")

    def inspect_image(self, image: str) -> Image | None:
        """The image's configuration, or None when the storage has no such image."""
        found = subprocess.run(
            ["buildah", "inspect", "--type", "image", image],
            capture_output=True,
            timeout=_INSPECT_TIMEOUT,
            check=False,
        )
        if found.returncode != 0:
            return None
        config = json.loads(found.stdout).get("OCIv1", {}).get("config") or {}
        return Image(tags=[image], config={"WorkingDir": "", **config})


def build_command(
    *,
    tag: str,
    path: str,
    dockerfile: str,
    buildargs: Mapping[str, str],
    labels: Mapping[str, str],
    memory: int,
    platform: str,
    certificates: str = "",
) -> list[str]:
    """The buildah command of one build. Pure. `memory` means nothing: the pod's limit holds for every step.

    `certificates` is laid over Debian's bundle while steps run, and is not part of the image.
    """
    # `--pull=false` takes a base image that is in the storage, and pulls one that is not.
    command = ["buildah", "build", "--isolation=chroot", "--layers", "--force-rm", "--pull=false", "--format=oci"]
    if tag:
        command.append(f"--tag={tag}")
    if dockerfile:
        command.append(f"--file={dockerfile}")
    # A named platform makes buildah ask the base image's registry for a newer one, also when it is the machine's own.
    if platform and platform != f"linux/{_ARCHITECTURES.get(machine(), machine())}":
        command.append(f"--platform={platform}")
    if certificates:
        command.append(f"--volume={certificates}:{_BUNDLE}:ro")
    command += [f"--build-arg={key}={value}" for key, value in buildargs.items()]
    command += [f"--label={key}={value}" for key, value in labels.items()]
    return [*command, path]
