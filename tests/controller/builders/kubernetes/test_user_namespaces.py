"""A cluster that drops the wish for a user namespace runs no build. The real one here has them: the API is scripted."""

from __future__ import annotations

import copy

import pytest

from prebinder.builders.kubernetes.api import Object
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.config.models import Configuration
from prebinder.model.failure import BuildFailed, FailureKind
from prebinder.model.images import ImageName
from prebinder.pod.build import root_of_the_node
from tests.controller.builders.kubernetes.test_watch import ScriptedApi
from tests.support.build_orders import an_order


class OldApi(ScriptedApi):
    """Knows no `hostUsers`, as Kubernetes 1.32 without the feature gate."""

    namespace = "here"

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[Object] = []

    async def pages(self, kind, selector):  # type: ignore[no-untyped-def]  # as the watch wants it
        yield [], "1"

    async def watch(self, kind, selector, version, *, seconds, idle):  # type: ignore[no-untyped-def]
        while True:
            yield await self.events[kind].get()

    async def create_job(self, manifest: Object) -> Object:
        made = copy.deepcopy(manifest)
        made["metadata"]["uid"] = "1"
        del made["spec"]["template"]["spec"]["hostUsers"]
        self.jobs.append(made)
        return made

    async def job(self, name: str) -> Object | None:
        return self.jobs[0] if self.jobs else None

    async def delete_job(self, name: str, uid: str | None = None) -> None:
        self.jobs.clear()

    async def aclose(self) -> None:
        pass


async def test_a_dropped_wish_for_a_user_namespace_ends_the_build_and_leaves_no_job() -> None:
    tree = {"builder": {"kind": "kubernetes"}, "registry": {"prefix": "registry.example.org/binder/"}}
    configuration = Configuration.model_validate(tree)
    api = OldApi()

    async def digest_of(image: ImageName) -> str | None:
        return None

    async def connect(namespace: str | None) -> OldApi:
        return api

    builder = KubernetesBuilder(lambda: configuration, digest_of, connect=connect)  # type: ignore[arg-type]  # scripted
    with pytest.raises(BuildFailed, match="no user namespaces") as caught:
        async for _ in builder.build(an_order()):
            pass
    assert caught.value.kind is FailureKind.ENGINE
    assert not api.jobs
    await builder.aclose()


@pytest.mark.parametrize(
    ("uid_map", "root"),
    [
        ("         0          0 4294967295\n", True),
        ("         0    2621440      65536\n", False),
        ("         0     100000      65536\n     65536          0          1\n", False),
    ],
)
def test_the_pod_itself_sees_whether_it_is_root_of_its_node(uid_map: str, root: bool) -> None:
    assert root_of_the_node(uid_map) is root
