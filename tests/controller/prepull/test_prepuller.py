"""Pulling ahead on a real cluster: one at a time, told in the status, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from prebinder.builders.kubernetes.api import Api
from prebinder.config.prepull import PrepullConfig
from prebinder.prepull.plan import Pull, Wanted
from prebinder.prepull.pods import make_pull_pod
from prebinder.prepull.prepuller import Prepuller
from tests.support.images import Images, copy, forget, images
from tests.support.kube import Cluster, cluster, namespace

__all__ = ["cluster", "images", "namespace"]
pytestmark = pytest.mark.kubernetes
INSTANCE = "test"


@pytest.fixture(scope="module", autouse=True)
def _cleared(images: Images) -> Iterator[None]:
    yield
    forget(images.registry, "prepull-")


@pytest.fixture
async def api(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    connected = await Api.connect(namespace)
    yield connected
    await connected.aclose()


@contextlib.asynccontextmanager
async def running(api: Api, config: PrepullConfig, found: Sequence[Wanted]) -> AsyncIterator[Prepuller]:
    async def images_now() -> Sequence[Wanted]:
        return found

    prepuller = Prepuller(api, INSTANCE, lambda: config, images_now)
    task = asyncio.create_task(prepuller.run())
    try:
        yield prepuller
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the status is all that there is to see
            await asyncio.sleep(0.05)


def fresh(images: Images) -> str:
    """An image that no node has: a new name for known layers."""
    name = f"prepull-{secrets.token_hex(4)}"
    return f"{images.registry}/{name}@{copy(images.registry, images.server, name, '1')}"


async def test_images_come_onto_the_node_one_after_the_other_and_no_pod_stays(
    cluster: Cluster, namespace: str, images: Images, api: Api
) -> None:
    found = [Wanted(fresh(images), "a"), Wanted(fresh(images), "b")]
    most = 0
    async with running(api, PrepullConfig(enabled=True), found) as prepuller:

        def all_there() -> bool:
            nonlocal most
            most = max(most, len(cluster.get("pods", namespace)))
            return bool(prepuller.status.nodes) and all(n.held == 2 for n in prepuller.status.nodes)

        await until(all_there)
        assert prepuller.status.wanted == 2
        assert prepuller.status.problem is None
        assert prepuller.status.pulling is None
    assert most <= 1
    assert cluster.get("pods", namespace) == []


async def test_an_image_that_does_not_come_is_told_and_does_not_keep_the_next_one_back(
    cluster: Cluster, namespace: str, images: Images, api: Api
) -> None:
    gone = f"{images.registry}/gone@sha256:{'0' * 64}"
    async with running(api, PrepullConfig(enabled=True), [Wanted(gone, ""), Wanted(fresh(images), "")]) as prepuller:
        await until(lambda: prepuller.status.nodes and all(n.held == 1 for n in prepuller.status.nodes))
        assert prepuller.status.problem is not None
        assert gone in prepuller.status.problem
        assert "not found" in prepuller.status.problem
    assert cluster.get("pods", namespace) == []


async def test_what_an_earlier_controller_left_is_cleared_away(
    cluster: Cluster, namespace: str, images: Images, api: Api
) -> None:
    config = PrepullConfig(enabled=True)
    node = cluster.get("nodes", namespace)[0]["metadata"]["name"]
    cluster.apply(make_pull_pod(Pull(fresh(images), node), config, INSTANCE), namespace)
    async with running(api, config, []) as prepuller:
        await until(lambda: prepuller.status.enabled and not cluster.get("pods", namespace))


async def test_switched_off_it_does_nothing(api: Api, images: Images, cluster: Cluster, namespace: str) -> None:
    async with running(api, PrepullConfig(), [Wanted(fresh(images), "")]) as prepuller:
        calls = api.calls
        prepuller.look_again()
        await asyncio.sleep(0)
        assert prepuller.status.enabled is False
        assert api.calls == calls
