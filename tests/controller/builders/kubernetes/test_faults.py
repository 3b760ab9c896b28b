"""What goes wrong around a build on a cluster: nothing is lost, nothing is built twice, and people are told.

The API server goes away behind a gate of the test's own (tests/support/tcp_gate.py), so that other tests keep it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prebinder.builders.base import Progress
from prebinder.builders.kubernetes import builder as builder_module
from prebinder.builders.kubernetes.api import Api
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.builders.logs import LogStore
from prebinder.config import LiveConfiguration
from prebinder.config.models import Configuration
from prebinder.hosts.base import Host
from prebinder.ledger import Ledger
from prebinder.model.events import BuildEvent, BuildRecord, BuildState, Phase
from prebinder.model.images import ImageName
from prebinder.model.spec import Provider, Repository, git_url
from prebinder.reconcile import Controller
from tests.support.cluster_builds import GOOD, LOG, Site, failure, name_of, on_build, run, text
from tests.support.controller import until
from tests.support.memory_host import MemoryHost
from tests.support.scripted_builder import Shelf
from tests.support.scripted_pod import DIGEST, clone_url, scripted_order

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]

OURS = [] if os.environ.get("KUBECONFIG") else shlex.split(os.environ.get("KUBE_UP", ""))
"""The command that started the cluster, when these tests did."""
COUNTING = "for n in $(seq 1 40); do log building line-$n; sleep 0.3; done"
COUNTED = "".join(f"line-{n}\n" for n in range(1, 41))


# The API server is away


@pytest.mark.parametrize("way_to_go", ["cut", "hold"])
async def test_an_api_server_that_is_away_in_mid_build_costs_no_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way_to_go: str
) -> None:
    order = scripted_order(on_build(COUNTING))
    async with site.through_a_gate(tmp_path, monkeypatch) as gate, site.builder() as builder:
        said = ""
        async with aclosing(builder.build(order)) as stream:  # type: ignore[type-var]
            async for progress in stream:
                if progress.phase is not Phase.WAITING:  # a cluster that is slow today is told, too
                    said += progress.message
                if "line-5\n" in progress.message:
                    getattr(gate, way_to_go)()
                    asyncio.get_running_loop().call_later(10, gate.open)
        assert said == COUNTED
        assert len(await site.pods_of(order)) == 1


async def test_a_build_that_begins_while_the_api_server_is_away_waits_for_it_and_says_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.through_a_gate(tmp_path, monkeypatch) as gate, site.builder() as builder:
        gate.cut()
        said: list[Progress] = []
        async for progress in builder.build(scripted_order(GOOD)):
            if not said:
                assert progress.phase is Phase.WAITING
                assert "does not answer" in progress.message
                gate.open()
            said.append(progress)
        assert text([p for p in said if p.phase is not Phase.WAITING]) == LOG


async def test_a_build_cancelled_while_the_api_server_is_away_is_deleted_afterwards(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder_module, "_CANCEL_SECONDS", 0.5)
    order = scripted_order(on_build("log building One; sleep 100"))
    async with site.through_a_gate(tmp_path, monkeypatch) as gate, site.builder() as builder:
        async with aclosing(builder.build(order)) as stream:  # type: ignore[type-var]
            async for progress in stream:
                if "One" in progress.message:
                    gate.cut()
                    break
        assert await site.pods_of(order)
        gate.open()

        async def gone() -> bool:
            return name_of(order) not in [job["metadata"]["name"] for job in await site.jobs()]

        await site.until(gone)


async def test_a_watch_that_has_expired_begins_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server answers 410 to a resource version from long ago."""
    asked: list[str] = []
    watch = Api.watch

    def from_long_ago(self: Api, kind: Any, selector: str, version: str, **more: Any) -> Any:
        asked.append(version)
        return watch(self, kind, selector, "1" if len(asked) <= 4 else version, **more)

    monkeypatch.setattr(Api, "watch", from_long_ago)
    async with site.builder() as builder:
        assert text(await run(builder, scripted_order(GOOD))) == LOG
        assert len(asked) > 4


# The controller ends in mid-build


@dataclass
class ScriptHost(MemoryHost):
    """Every revision's pod runs the same script."""

    script: str = GOOD

    def clone_url(self, repository: Repository) -> str:
        return clone_url(self.script)


class ClusterShelf(Shelf):
    """What the registry shows: an image is there once its pod has pushed it."""

    async def pushed(self, image: ImageName) -> str:
        self.put(image)
        return DIGEST


@dataclass
class Place:
    """What outlives a controller: folder, Git host, registry, cluster."""

    site: Site
    folder: Path
    host: ScriptHost
    shelf: ClusterShelf
    course: Repository

    @asynccontextmanager
    async def controller(self, *, kill: bool = False, folder: str = "state") -> AsyncIterator[Controller]:
        """With `kill` it ends as by SIGKILL: nothing that it would still write or tell the cluster is told."""
        tree = self.site.configuration().model_dump(mode="json", exclude_defaults=True)
        tree["limits"] = {"backoff": 0.1, "backoff_max": 0.2}
        tree["polling"] = {"interval": 3600, "jitter": 0}
        tree["repositories"] = [{"git": self.course.name}]
        live = LiveConfiguration(Configuration.model_validate(tree))
        state = self.folder / folder
        state.mkdir(exist_ok=True)
        hosts: dict[Provider, Host] = {Provider.GIT: self.host}
        ledger = await Ledger.open(state / "ledger.sqlite")
        builder = KubernetesBuilder(lambda: live.current, self.shelf.pushed)
        before = asyncio.all_tasks()
        controller = Controller(live, ledger, hosts, builder, self.shelf, LogStore(state / "builds"))
        try:
            await controller.start()
            yield controller
        finally:
            if kill:
                builder.detach()
                controller._schedule._scheduler.pause()
                ours = asyncio.all_tasks() - before - {asyncio.current_task()}
                for task in ours:
                    task.cancel()
                await asyncio.gather(*ours, return_exceptions=True)
            else:
                await controller.stop()
            await builder.aclose()
            await ledger.aclose()

    async def build(self, controller: Controller) -> str:
        """The build of the newest revision, once there is one."""

        def known() -> str | None:
            entry = controller.catalogue().repositories[0].entry(self.host.head(self.course))
            return entry.build if entry else None

        return str(await until(known))

    async def events(self, controller: Controller, build: str, within: float = 90) -> list[BuildEvent]:
        async with asyncio.timeout(within):
            return [event async for event in await controller.events(build)]

    async def ended(self, controller: Controller, build: str) -> BuildRecord:
        """The build as the ledger has it in the end."""

        async def record() -> BuildRecord | None:
            found = await controller.build(build)
            return found if found.state.finished else None

        found = await self.site.until(record)
        assert found is not None
        return found

    async def pods(self) -> list[dict[str, Any]]:
        revision = self.host.head(self.course)
        return await asyncio.to_thread(
            self.site.cluster.get, "pods", self.site.namespace, f"prebinder/revision={revision}"
        )


@pytest.fixture
def place(site: Site, tmp_path: Path) -> Place:
    course = git_url(f"https://memory.invalid/course-{random.getrandbits(32):x}")
    host = ScriptHost()
    host.push(course, "First")
    return Place(site, tmp_path, host, ClusterShelf(), course)


def log_of(events: list[BuildEvent]) -> str:
    return "".join(e.message for e in events if e.phase in (Phase.FETCHING, Phase.BUILDING, Phase.PUSHING))


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_a_build_outlives_its_controller_and_the_next_one_goes_on_with_it(place: Place, kill: bool) -> None:
    place.host.script = on_build(COUNTING)
    async with place.controller(kill=kill) as first:
        build = await place.build(first)
        async with asyncio.timeout(60):
            async for event in await first.events(build):
                if "line-7\n" in event.message:
                    break
    async with place.controller() as second:
        events = await place.events(second, build)
        assert log_of(events) == COUNTED
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        record = await place.ended(second, build)
        assert (record.state, record.attempt) == (BuildState.READY, 1)
        assert len(await place.pods()) == 1


async def test_a_controller_killed_between_creating_a_job_and_writing_it_down_builds_once(
    place: Place,
) -> None:
    place.host.script = on_build("sleep 4; log building One")
    async with place.controller(kill=True) as first:
        build = await place.build(first)

        async def created() -> bool:
            return bool(await place.site.jobs()) and bool(await place.pods())

        await place.site.until(created)
    async with place.controller() as second:
        events = await place.events(second, build)
        assert log_of(events) == "One\n"
        record = await place.ended(second, build)
        assert (record.state, record.attempt) == (BuildState.READY, 1)
        assert len(await place.pods()) == 1


async def test_a_build_that_ended_while_no_controller_ran_is_told_in_full(place: Place) -> None:
    place.host.script = on_build("log building One; sleep 3; log building Two")
    async with place.controller(kill=True) as first:
        build = await place.build(first)
        async with asyncio.timeout(60):
            async for event in await first.events(build):
                if "One" in event.message:
                    break

    async def ended() -> bool:
        return [pod["status"]["phase"] for pod in await place.pods()] == ["Succeeded"]

    await place.site.until(ended)
    async with place.controller() as second:
        assert log_of(await place.events(second, build)) == "One\nTwo\n"


async def test_two_controllers_started_at_once_build_an_image_once(place: Place) -> None:
    place.host.script = on_build("log building One; sleep 2; log building Two")
    async with place.controller(folder="a") as first, place.controller(folder="b") as second:
        for controller in (first, second):
            events = await place.events(controller, await place.build(controller))
            assert log_of(events) == "One\nTwo\n"
            assert events[-1].phase is Phase.BUILT
        assert len(await place.pods()) == 1


async def test_a_build_whose_job_went_while_no_controller_ran_is_tried_again(place: Place) -> None:
    place.host.script = on_build("log building One; sleep 2; log building Two")
    async with place.controller(kill=True) as first:
        build = await place.build(first)
        async with asyncio.timeout(60):
            async for event in await first.events(build):
                if "One" in event.message:
                    break
    await place.site.kubectl("delete", "jobs", "--all")
    async with place.controller() as second:
        events = await place.events(second, build)
        assert events[-1].phase is Phase.BUILT
        assert log_of(events).endswith("One\nTwo\n")
        assert (await place.ended(second, build)).attempt == 2


@pytest.mark.timeout(420)
@pytest.mark.skipif(not OURS, reason="only a cluster that these tests start (KUBE_UP) may be stopped")
async def test_a_cluster_that_goes_down_and_comes_back_in_mid_build_costs_one_attempt_at_most(place: Place) -> None:
    place.host.script = on_build(COUNTING)
    async with place.controller() as controller:
        build = await place.build(controller)
        async with asyncio.timeout(60):
            async for event in await controller.events(build):
                if "line-5\n" in event.message:
                    break
        for word in ("down", "up"):
            await asyncio.to_thread(subprocess.run, [*OURS, word], check=True, capture_output=True, timeout=180)
        events = await place.events(controller, build, within=240)
        assert events[-1].phase is Phase.BUILT
        assert log_of(events).endswith(COUNTED)
        assert (await place.ended(controller, build)).attempt <= 2


# What a build tries


async def test_a_build_finds_no_credentials_and_no_token(site: Site) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "push"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": '{"auths": {"registry.invalid": {"auth": "c2VjcmV0"}}}'},
    }
    await asyncio.to_thread(site.cluster.apply, secret, site.namespace)
    script = f"""
    found=$(echo /run/registry/* /run/secrets/* /var/run/secrets/*)
    case $ROLE in
        build) log building "found: $found";;
        push) log pushing "found: $found"; pushed {DIGEST};;
    esac
    """
    async with site.builder(push_secret="push") as builder:
        said = text(await run(builder, scripted_order(script)))
    assert said == "found: /run/registry/* /run/secrets/* /var/run/secrets/*\n" + (
        "found: /run/registry/config.json /run/secrets/* /var/run/secrets/*\n"
    )


async def test_a_build_that_kills_and_lies_ends_only_itself(site: Site) -> None:
    """It runs as the container's root: what it can reach is its own container and its own last word."""
    order = scripted_order(on_build('log pushing "pushed all"; pushed sha256:' + "ee" * 32 + "; kill -9 -1; exit 1"))
    async with site.builder() as builder:
        failed = await failure(builder, order)
        assert failed.kind.disposition.value in ("retry", "stalled")
        again = replace(scripted_order(GOOD), id=order.id, attempt=2, image=order.image)
        assert text(await run(builder, again)) == LOG
