"""The one watch, against an API that does what the test says. The real one is in test_builder.py and test_faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prebinder.builders.kubernetes.api import JOBS, PODS, ApiAway, Expired, Object
from prebinder.builders.kubernetes.names import REPOSITORY
from prebinder.builders.kubernetes.watch import Watch
from tests.support.controller import until


def job(name: str, version: int, **status: Any) -> Object:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "managedFields": ["x"]},
        "spec": {"template": {"spec": "large"}},
        "status": status,
    }


def pod(name: str, of: str, version: int, node: str | None = None) -> Object:
    labels = {
        "batch.kubernetes.io/job-name": of,
        "batch.kubernetes.io/controller-uid": f"uid-{of}",
        REPOSITORY: "repository",
    }
    spec: Object = {"containers": [{"name": "push", "env": ["secret"]}]}
    if node:
        spec["nodeName"] = node
    metadata = {"name": name, "resourceVersion": str(version), "labels": labels, "creationTimestamp": f"2026-{version}"}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


class ScriptedApi:
    """Lists what `held` says; a watch gives what is put into its queue: events, or an exception."""

    selector = "the=selector"

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], list[Object]] = {JOBS: [], PODS: []}
        self.events: dict[tuple[str, str], asyncio.Queue[Any]] = {JOBS: asyncio.Queue(), PODS: asyncio.Queue()}
        self.lists: list[tuple[str, str]] = []
        self.watches: list[tuple[tuple[str, str], str]] = []
        self.away: Exception | None = None

    async def pages(self, kind: tuple[str, str], selector: str) -> AsyncGenerator[tuple[list[Object], str], None]:
        assert selector == self.selector
        self.lists.append(kind)
        if self.away:
            raise self.away
        for item in self.held[kind]:
            yield [item], "100"
        yield [], "100"

    async def watch(
        self, kind: tuple[str, str], selector: str, version: str, *, seconds: int, idle: float
    ) -> AsyncGenerator[tuple[str, Object], None]:
        assert selector == self.selector
        self.watches.append((kind, version))
        while True:
            event = await self.events[kind].get()
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def tell(self, kind: tuple[str, str], *events: Any) -> None:
        for event in events:
            self.events[kind].put_nowait(event)


@asynccontextmanager
async def watching(api: ScriptedApi, **more: Any) -> AsyncIterator[Watch]:
    watch = Watch(api, "the=selector", **more)  # type: ignore[arg-type]
    watch.start()
    try:
        async with asyncio.timeout(10):
            yield watch
    finally:
        await watch.aclose()


async def change(watch: Watch, name: str) -> None:
    await watch.changed(name, watch.seen(name).turn)


async def test_what_was_there_and_what_comes_is_seen_and_only_what_is_read_is_kept() -> None:
    api = ScriptedApi()
    api.held = {JOBS: [job("a", 1)], PODS: [pod("a-1", "a", 2, "node-1")]}
    async with watching(api) as watch:
        await watch.synced()
        seen = watch.seen("a")
        assert seen.job is not None
        assert "managedFields" not in seen.job["metadata"]
        assert "template" not in seen.job["spec"]
        assert seen.pods[0]["spec"]["containers"] == [{"name": "push"}]
        assert watch.node_of("repository") == "node-1"
        api.tell(JOBS, ("MODIFIED", job("a", 5, phase="one")))
        await watch.changed("a", seen.turn)
        assert watch.seen("a").job["status"] == {"phase": "one"}  # type: ignore[index]
        assert watch.seen("b").job is None


async def test_whoever_waits_is_woken_by_their_own_job_alone() -> None:
    api = ScriptedApi()
    async with watching(api) as watch:
        await watch.synced()
        mine = asyncio.create_task(change(watch, "mine"))
        api.tell(JOBS, ("ADDED", job("other", 3)))
        await change(watch, "other")
        assert not mine.done()
        api.tell(PODS, ("ADDED", pod("mine-1", "mine", 4)))
        await mine


async def test_what_was_deleted_wakes_too_and_is_forgotten() -> None:
    api = ScriptedApi()
    api.held[JOBS] = [job("a", 1)]
    async with watching(api) as watch:
        await watch.synced()
        before = watch.seen("a")
        waiting = asyncio.create_task(watch.changed("a", before.turn))
        await asyncio.sleep(0)
        api.tell(JOBS, ("DELETED", job("a", 7)))
        await waiting
        assert watch.seen("a").job is None
        await watch.changed("a", before.turn)  # one who asks late is not left waiting


async def test_a_watch_that_ends_goes_on_from_the_last_version_without_a_list() -> None:
    api = ScriptedApi()
    async with watching(api) as watch:
        await watch.synced()
        api.tell(JOBS, ("BOOKMARK", {"metadata": {"resourceVersion": "140"}}), None, ("ADDED", job("a", 150)))
        await change(watch, "a")
        assert [version for kind, version in api.watches if kind == JOBS] == ["100", "140"]
        assert api.lists.count(JOBS) == 1


async def test_an_expired_watch_begins_anew_with_a_list_that_also_forgets() -> None:
    api = ScriptedApi()
    api.held[JOBS] = [job("old", 1)]
    async with watching(api) as watch:
        await watch.synced()
        turn = watch.seen("old").turn
        api.held[JOBS] = [job("new", 200)]
        api.tell(JOBS, Expired("too old", 410, "Expired"))
        await watch.changed("old", turn)
        assert watch.seen("old").job is None
        assert watch.seen("new").job is not None


async def test_while_the_api_is_away_the_last_state_stands_and_says_why() -> None:
    api = ScriptedApi()
    api.held[JOBS] = [job("a", 1)]
    async with watching(api) as watch:
        await watch.synced()
        assert watch.away is None
        api.away = ApiAway("The API server is away.")
        api.tell(JOBS, ApiAway("The watch broke off."))
        await until(lambda: api.lists.count(JOBS) >= 3)
        assert watch.seen("a").job is not None
        assert str(watch.away) == "The API server is away."
        api.away = None
        api.held[JOBS] = [job("a", 9, phase="two")]
        await change(watch, "a")
        assert watch.away is None
        assert watch.seen("a").job["status"] == {"phase": "two"}  # type: ignore[index]


async def test_what_nobody_foresaw_is_told_and_tried_again() -> None:
    api = ScriptedApi()
    async with watching(api) as watch:
        await watch.synced()
        api.tell(JOBS, ("MODIFIED", {"metadata": {"resourceVersion": "7"}}))  # without a name
        api.away = KeyError("resourceVersion")
        await until(lambda: "a defect of Prebinder (KeyError)" in str(watch.away))
        api.away = None
        api.held[JOBS] = [job("a", 9)]
        await change(watch, "a")
        assert watch.away is None


async def test_an_api_whose_every_watch_has_expired_at_once_is_asked_with_pauses() -> None:
    api = ScriptedApi()
    api.tell(JOBS, *(Expired("too old", 410, "Expired") for _ in range(100)))
    async with watching(api) as watch:
        begun = asyncio.get_running_loop().time()
        await watch.synced()
        await until(lambda: api.lists.count(JOBS) >= 4)
        assert asyncio.get_running_loop().time() - begun > 0.5


async def test_a_list_comes_by_itself_now_and_then() -> None:
    api = ScriptedApi()
    async with watching(api, resync=0.05) as watch:
        await watch.synced()
        api.held[JOBS] = [job("missed", 3)]
        await change(watch, "missed")
        assert watch.away is None


async def test_a_pod_that_does_not_go_because_its_node_is_gone_is_lost_after_a_while() -> None:
    api = ScriptedApi()
    api.held = {JOBS: [job("a", 1)], PODS: [pod("a-1", "a", 2), pod("a-2", "a", 3)]}
    async with watching(api, lost_after=0.05) as watch:
        going = pod("a-1", "a", 4)
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        api.tell(PODS, ("MODIFIED", going))
        await until(lambda: [p["metadata"]["name"] for p in watch.seen("a").pods] == ["a-2"])


async def test_a_pod_that_goes_in_time_is_not_lost() -> None:
    api = ScriptedApi()
    api.held = {JOBS: [job("a", 1)], PODS: [pod("a-1", "a", 2)]}
    async with watching(api) as watch:
        going = pod("a-1", "a", 4)
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        api.tell(PODS, ("MODIFIED", going), ("DELETED", going))
        await until(lambda: not watch.seen("a").pods)
        assert not watch._going
