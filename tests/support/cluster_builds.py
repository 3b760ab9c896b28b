"""A builder on a real cluster whose pods run the test's scripts (scripted_pod.py), in the module's namespace.

The fixtures are `site` and what it needs (`cluster`, `namespace`, `scripted_image`): import all four in a conftest.py.

async with site.builder() as builder:
    said = await run(builder, scripted_order(GOOD))
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from prebinder.builders.base import BuildOrder, Progress
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.builders.kubernetes.names import job_name
from prebinder.config.models import Configuration
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed
from prebinder.model.images import ImageName
from tests.support.kube import Cluster
from tests.support.scripted_pod import DIGEST
from tests.support.tcp_gate import Gate, gate

T = TypeVar("T")

GOOD = f"""
case $ROLE in
    build) log fetching Cloning; log building "Step 1"; log building "Step 2";;
    push) log pushing Pushing; pushed {DIGEST};;
esac
"""
LOG = "Cloning\nStep 1\nStep 2\nPushing\n"


def on_build(script: str) -> str:
    return f"case $ROLE in build) {script};; push) pushed {DIGEST};; esac"


@dataclass
class Site:
    """A cluster's namespace in which builders build."""

    cluster: Cluster
    namespace: str
    image: str
    shown: str | Exception | None = DIGEST
    """What the registry shows for every image."""

    async def digest_of(self, image: ImageName) -> str | None:
        if isinstance(self.shown, Exception):
            raise self.shown
        return self.shown

    @asynccontextmanager
    async def builder(self, patience: float = 60, **kubernetes: Any) -> AsyncIterator[KubernetesBuilder]:
        configuration = self.configuration(**kubernetes)
        builder = KubernetesBuilder(lambda: configuration, self.digest_of, patience=patience)
        try:
            await builder.adopt()
            yield builder
        finally:
            await builder.aclose()

    def configuration(self, **kubernetes: Any) -> Configuration:
        settings = {
            "namespace": self.namespace,
            "image": self.image,
            "cpu_request": 0.01,
            "memory_request": "16MB",
            "layer_cache": False,
            **kubernetes,
        }
        registry = {"prefix": "registry.invalid/b-"}
        return Configuration.model_validate(
            {"builder": {"kind": "kubernetes", "kubernetes": settings}, "registry": registry}
        )

    @asynccontextmanager
    async def through_a_gate(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
        """Builders that start in the block reach the API server through a gate."""
        text = self.cluster.kubeconfig.read_text()
        found = re.search(r"server:\s*[\"']?(https://[^\s\"',}]+)", text)
        assert found is not None
        server = urlsplit(found[1])
        assert server.hostname is not None
        async with gate(server.hostname, server.port or 443) as way:
            config = folder / "through-the-gate"
            config.write_text(text.replace(found[1], f"https://127.0.0.1:{way.port}"))
            name = self.cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].name}")
            await asyncio.to_thread(
                self.cluster.kubectl,
                f"--kubeconfig={config}",
                *("config", "set-cluster", name, f"--tls-server-name={server.hostname}"),
            )
            with monkeypatch.context() as patch:
                patch.setenv("KUBECONFIG", str(config))
                yield way

    async def kubectl(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, "-n", self.namespace, *arguments)

    async def jobs(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.cluster.get, "jobs", self.namespace)

    async def pods_of(self, order: BuildOrder) -> list[dict[str, Any]]:
        return await asyncio.to_thread(
            self.cluster.get, "pods", self.namespace, f"batch.kubernetes.io/job-name={name_of(order)}"
        )

    async def until(self, look: Callable[[], Awaitable[T]], seconds: float = 90) -> T:
        end = asyncio.get_running_loop().time() + seconds
        while not (found := await look()):
            assert asyncio.get_running_loop().time() < end, "it did not come in time"
            await asyncio.sleep(0.1)
        return found


@pytest.fixture
def site(cluster: Cluster, namespace: str, scripted_image: str, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return Site(cluster, namespace, scripted_image)


def name_of(order: BuildOrder) -> str:
    return job_name("prebinder", order.image)


async def run(builder: KubernetesBuilder, order: BuildOrder) -> list[Progress]:
    """Everything that a build says, waiting apart."""
    return [p async for p in builder.build(order) if p.phase is not Phase.WAITING]


def text(said: list[Progress]) -> str:
    return "".join(p.message for p in said)


async def waiting(builder: KubernetesBuilder, order: BuildOrder) -> tuple[str, BuildFailed]:
    """What a build that fails said while it waited, and its failure."""
    said = ""
    try:
        async for progress in builder.build(order):
            assert progress.phase is Phase.WAITING
            said += progress.message
    except BuildFailed as failed:
        return said, failed
    raise AssertionError("the build did not fail")


async def failure(builder: KubernetesBuilder, order: BuildOrder) -> BuildFailed:
    with pytest.raises(BuildFailed) as caught:
        await run(builder, order)
    return caught.value
