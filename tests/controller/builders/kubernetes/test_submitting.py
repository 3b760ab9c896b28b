"""A Job that stands in the way of another attempt's, on a scripted API: the real one lets go of Jobs at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prebinder.builders.base import Progress
from prebinder.builders.kubernetes.api import JOBS, ApiAway, ApiRefused, Object
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.builders.kubernetes.names import selector
from prebinder.config.models import Configuration
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, FailureKind
from prebinder.model.images import ImageName
from tests.controller.builders.kubernetes.test_watch import ScriptedApi
from tests.support.build_orders import an_order


class OccupiedApi(ScriptedApi):
    """Has a Job of an earlier attempt, whose deletion a finalizer holds up."""

    namespace = "here"
    selector = selector("prebinder")

    def __init__(self, *, overloaded: bool) -> None:
        super().__init__()
        self.overloaded = overloaded
        self.there: Object = {}
        self.created = 0

    async def create_job(self, manifest: Object) -> Object:
        await asyncio.sleep(0)
        self.created += 1
        metadata = {**manifest["metadata"], "uid": "1", "resourceVersion": "1"}
        metadata["labels"] = {**metadata["labels"], "prebinder/attempt": "0"}
        self.there = {**manifest, "metadata": {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}}
        raise ApiRefused("It exists.", 409, "AlreadyExists")

    async def job(self, name: str) -> Object | None:
        if self.overloaded:
            raise ApiAway("Too many requests.")
        return self.there

    async def delete_job(self, name: str, uid: str | None = None) -> None:
        self.there["metadata"]["resourceVersion"] = f"1{self.created}"
        self.tell(JOBS, ("MODIFIED", self.there))

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("overloaded", [False, True], ids=["does-not-go", "cannot-be-looked-at"])
async def test_an_earlier_job_that_stays_is_waited_for_with_pauses_told_and_given_up(
    overloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prebinder.builders.kubernetes.builder._CANCEL_SECONDS", 0.1)
    tree: dict[str, Any] = {"builder": {"kind": "kubernetes", "kubernetes": {"pending_limit": 1.0}}}
    configuration = Configuration.model_validate({**tree, "registry": {"prefix": "registry.example.org/binder/"}})
    api = OccupiedApi(overloaded=overloaded)
    said: list[Progress] = []

    async def digest_of(image: ImageName) -> str | None:
        return None

    async def connect(namespace: str | None) -> OccupiedApi:
        return api

    builder = KubernetesBuilder(lambda: configuration, digest_of, connect=connect)  # type: ignore[arg-type]  # scripted

    async def build() -> None:
        async with asyncio.timeout(10):
            async for progress in builder.build(an_order()):
                said.append(progress)  # noqa: PERF401 - until it fails

    try:
        with pytest.raises(BuildFailed, match="An earlier Job of this image is still going") as caught:
            await build()
    finally:
        await builder.aclose()
    assert caught.value.kind is FailureKind.ENGINE
    assert [(p.phase, "earlier Job" in p.message) for p in said] == [(Phase.WAITING, True)]
    assert api.created <= 3
