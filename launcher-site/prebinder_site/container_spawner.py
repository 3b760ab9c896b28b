"""Users' servers as containers of podman or docker on one machine: DockerSpawner over the engine's Unix socket.

A container gets no capability, no new privileges, a limit of memory and processes, and no mount: neither the engine's
socket nor the Hub can be reached from it (the Hub listens on the machine's 127.0.0.1, the container lives in a bridge
network). It is removed when it stops.
"""

from __future__ import annotations

from typing import Any

import docker
from dockerspawner import DockerSpawner
from traitlets import Dict, Unicode, default

from prebinder_site.jupyterhub import PrebinderSpawner

_PROCESSES = 4096


class ContainerSpawner(PrebinderSpawner, DockerSpawner):  # type: ignore[misc]
    """One container a user. A missing image fails at once; pulling is up to `pull_policy`."""

    engine_labels = Dict(help="Labels by which the engine's owner finds its containers again.").tag(config=True)
    registry_credentials = Unicode(help="A Docker config.json with the registry's credentials.").tag(config=True)

    # The addresses in the bridge network are reached from this machine directly.
    use_internal_ip = True
    remove = True
    prefix = "prebinder-user"
    name_template = "{prefix}-{username}"
    # The mixin judges images.
    allowed_images = "*"

    @default("extra_create_kwargs")  # type: ignore[untyped-decorator]
    def _create_options(self) -> dict[str, Any]:
        # repo2docker's user; a Dockerfile that ends as root does not get root here.
        return {"labels": {**self.engine_labels, "prebinder.role": "server"}, "user": "1000"}

    @default("extra_host_config")  # type: ignore[untyped-decorator]
    def _host_options(self) -> dict[str, Any]:
        return {
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "pids_limit": _PROCESSES,
            "memswap_limit": self.mem_limit,
        }

    async def pull_image(self, image: str) -> None:
        """As DockerSpawner's, but a digest stays in one piece and the registry's credentials are sent."""
        if self.pull_policy == "ifnotpresent":
            try:
                await self.docker("inspect_image", image)
            except docker.errors.NotFound:
                self.log.info("Pulling image %s", image)
                options: dict[str, Any] = {}
                if self.registry_credentials:
                    known = docker.auth.load_config(config_path=self.registry_credentials)
                    registry, _ = docker.auth.resolve_repository_name(image.partition("@")[0])
                    options["auth_config"] = docker.auth.resolve_authconfig(known, registry)
                await self.docker("pull", image, **options)
            return
        await super().pull_image(image)
