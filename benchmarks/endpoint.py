"""`python -m benchmarks.endpoint FOLDER HUB_PORT`: a launch endpoint in a process of its own, for the benchmark.

Controller and Git host are away on purpose: a click on a ready image needs neither. Prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvicorn
from pydantic import SecretStr

from prebinder.config.models import RegistryConfig
from prebinder.model.catalogue import Catalogue, ImageState, RefEntry, RefKind, RepositoryEntry, RevisionEntry
from prebinder.registry.oci import OCIRegistry
from prebinder_site.app import EndpointSettings, create_app

PREFIX = "registry.example.org/binder/"


def catalogue(repositories: int = 50, commits: int = 20) -> Catalogue:
    """A catalogue of a usual size, all of it ready."""
    now = datetime.now(UTC)
    entries = []
    for number in range(repositories):
        revisions = tuple(
            RevisionEntry(
                revision=f"{number:08x}{commit:032x}",
                state=ImageState.READY,
                since=now,
                image=f"{PREFIX}course-{number}@sha256:{commit:064x}",
            )
            for commit in range(commits)
        )
        entries.append(
            RepositoryEntry(
                repository=f"gh/university/course-{number}",
                provider="gh",
                name=f"university/course-{number}",
                title=f"Course {number}",
                url=f"https://github.com/university/course-{number}",
                default_branch="main",
                looked_at=now,
                fed_by_webhook=True,
                refs=(RefEntry(name="main", kind=RefKind.BRANCH, revision=revisions[0].revision),),
                revisions=revisions,
            )
        )
    return Catalogue(
        version="1", published_at=now, on_demand="registered", image_prefix=PREFIX, repositories=tuple(entries)
    )


async def main(folder: Path, hub_port: int) -> None:
    state = folder / "state"
    state.mkdir(parents=True)
    (state / "catalogue.json").write_text(catalogue().model_dump_json())
    settings = EndpointSettings(
        public_url="https://binder.example.org/",
        site_folder=folder / "site",
        state_folder=state,
        hub_api_url=f"http://127.0.0.1:{hub_port}/hub/api/",
        hub_public_url="https://hub.example.org/",
        hub_token=SecretStr("benchmark"),
        image_prefix=PREFIX,
    )
    # Named as TCP, or asyncio leaves Nagle's algorithm on for its connections (base_events._set_nodelay).
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    images = OCIRegistry(RegistryConfig(prefix="127.0.0.1:9/binder/", insecure=True))
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as controller:
        app = create_app(settings, controller=controller, images=images, hosts={})
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none")
        print(listener.getsockname()[1], flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
