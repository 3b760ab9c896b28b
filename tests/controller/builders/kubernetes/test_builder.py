"""Builds as Jobs on a real cluster: created, followed, adopted, cancelled, and told by kind when they fail.

What runs in the pods is a script of the test (tests/support/scripted_pod.py).
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from prebinder.builders.base import Progress
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.config.models import Configuration
from prebinder.model.events import Phase
from prebinder.model.failure import EngineError, FailureKind, RegistryError
from tests.support.cluster_builds import (
    GOOD,
    LOG,
    Site,
    failure,
    name_of,
    on_build,
    run,
    text,
    waiting,
)
from tests.support.scripted_pod import scripted_order

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]


async def test_a_build_is_one_job_and_its_log_comes_from_the_first_line_with_its_phases(site: Site) -> None:
    order = scripted_order(GOOD)
    async with site.builder() as builder:
        said = await run(builder, order)
        assert text(said) == LOG
        # One phase may come in several pieces.
        assert [phase for phase, _ in groupby(p.phase for p in said)] == ["fetching", "building", "pushing"]
        (job,) = [j for j in await site.jobs() if j["metadata"]["name"] == name_of(order)]
        assert job["metadata"]["annotations"]["prebinder/revision"] == order.revision
        await builder.health()


async def test_a_log_comes_while_the_build_runs(site: Site) -> None:
    order = scripted_order(on_build("log building First; sleep 60"))
    async with site.builder() as builder, asyncio.timeout(40), aclosing(builder.build(order)) as stream:  # type: ignore[type-var]
        async for progress in stream:
            if "First" in progress.message:
                break


async def test_creating_what_exists_is_success(site: Site) -> None:
    order = scripted_order(on_build("log building One; sleep 3; log building Two"))
    async with site.builder() as first, site.builder() as second:
        both = await asyncio.gather(run(first, order), run(second, replace(order, id="second")))
        assert [text(said) for said in both] == ["One\nTwo\n"] * 2
        assert len(await site.pods_of(order)) == 1


async def test_a_restarted_controller_goes_on_with_the_job_from_the_first_line(site: Site) -> None:
    order = scripted_order(on_build("log building One; sleep 4; log building Two"))
    async with site.builder() as first, aclosing(first.build(order)) as stream:  # type: ignore[type-var]
        async for progress in stream:
            if "One" in progress.message:
                first.detach()
                break
    async with site.builder() as second:
        assert text(await run(second, replace(order, resumed=True))) == "One\nTwo\n"
        assert len(await site.pods_of(order)) == 1
        # And once more, when all is over.
        assert text(await run(second, replace(order, resumed=True))) == "One\nTwo\n"


async def test_a_resumed_build_of_which_nothing_is_left_was_interrupted(site: Site) -> None:
    async with site.builder() as builder:
        failed = await failure(builder, scripted_order(GOOD, resumed=True))
        assert failed.kind is FailureKind.INTERRUPTED


async def test_a_cancelled_build_leaves_no_job_and_can_be_built_again_at_once(site: Site) -> None:
    order = scripted_order(on_build("log building One; sleep 60"))
    async with site.builder() as builder:
        async with aclosing(builder.build(order)) as stream:  # type: ignore[type-var]
            async for progress in stream:
                if "One" in progress.message:
                    break
        again = replace(scripted_order(GOOD, revision=order.revision), image=order.image)
        assert text(await run(builder, again)) == LOG


async def test_a_second_attempt_takes_the_place_of_the_first_one(site: Site) -> None:
    bad = scripted_order(on_build("log building One; failed clone away; exit 1"))
    async with site.builder() as builder:
        failed = await failure(builder, bad)
        assert failed.kind is FailureKind.GIT_HOST
        good = replace(scripted_order(GOOD), id=bad.id, image=bad.image, attempt=2)
        assert text(await run(builder, good)) == LOG


async def test_a_job_with_our_name_but_not_ours_is_left_alone_and_named(site: Site) -> None:
    order = scripted_order(GOOD)
    pod = {"containers": [{"name": "x", "image": site.image, "command": ["sleep", "600"]}], "restartPolicy": "Never"}
    theirs = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name_of(order)}}
    await asyncio.to_thread(site.cluster.apply, {**theirs, "spec": {"template": {"spec": pod}}}, site.namespace)
    async with site.builder() as builder:
        failed = await failure(builder, order)
        assert failed.kind is FailureKind.ENGINE
        assert f"Job {name_of(order)} that is not this Prebinder's" in str(failed)
    assert name_of(order) in [j["metadata"]["name"] for j in await site.jobs()]


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ('log building "error: bad file"; failed content ""; exit 1', FailureKind.REPOSITORY, "bad file"),
        ("failed revision gone; exit 1", FailureKind.NOT_FOUND, "gone"),
        ("failed unsupported conda; exit 1", FailureKind.UNSUPPORTED, "conda"),
        ("exit 124", FailureKind.TIMEOUT, "longer than 300 s"),
        ("exit 125", FailureKind.LOG_FLOOD, "more than 1 MB of log"),
        ("x=$(yes | head -c 200000000)", FailureKind.MEMORY, "67 MB of memory"),
    ],
)
async def test_what_a_build_does_wrong_is_its_own(site: Site, script: str, kind: FailureKind, words: str) -> None:
    async with site.builder() as builder:
        failed = await failure(builder, scripted_order(on_build(script)))
        assert (failed.kind, words in str(failed)) == (kind, True), str(failed)


async def test_a_build_that_writes_without_end_is_ended(site: Site) -> None:
    order = scripted_order(on_build("yes 'all work and no play'"))
    async with site.builder() as builder:
        failed = await failure(builder, order)
        assert failed.kind is FailureKind.LOG_FLOOD

        async def gone() -> bool:
            return not await site.pods_of(order)

        await site.until(gone)


async def test_a_build_that_fills_its_disk_is_ended(site: Site) -> None:
    order = scripted_order(
        on_build("while dd if=/dev/zero of=/work/$RANDOM bs=1M count=20; do sleep 1; done; sleep 200"),
        disk_limit=30 * 10**6,
    )
    async with site.builder() as builder:
        failed = await failure(builder, order)
        assert failed.kind is FailureKind.DISK, str(failed)


async def test_what_cannot_be_pushed_is_the_registrys(site: Site) -> None:
    script = 'case $ROLE in push) problem "the registry is full"; exit 1;; esac'
    async with site.builder() as builder:
        failed = await failure(builder, scripted_order(script))
        assert failed.kind is FailureKind.REGISTRY
        assert "the registry is full" in str(failed)


async def test_a_registry_that_shows_another_digest_is_refused(site: Site) -> None:
    site.shown = "sha256:" + "cd" * 32
    async with site.builder() as builder:
        failed = await failure(builder, scripted_order(GOOD))
        assert "cdcdcd" in str(failed)
        assert failed.kind is FailureKind.REFUSED


async def test_a_registry_that_is_away_after_the_push_is_tried_again(site: Site) -> None:
    site.shown = RegistryError("The registry does not answer.")
    async with site.builder() as builder:
        failed = await failure(builder, scripted_order(GOOD))
        assert failed.kind is FailureKind.REGISTRY


async def test_a_deleted_pod_is_the_clusters_doing(site: Site) -> None:
    order = scripted_order(on_build("log building One; sleep 60"))
    async with site.builder() as builder:
        task = asyncio.create_task(failure(builder, order))

        async def running() -> Any:
            pods = await site.pods_of(order)
            return pods and pods[0]["status"]["phase"] == "Pending" and "containerID" in str(pods[0]["status"])

        await site.until(running)
        await site.kubectl("delete", "pod", "-l", f"batch.kubernetes.io/job-name={name_of(order)}", "--wait=false")
        failed = await asyncio.wait_for(task, 60)
        assert failed.kind is FailureKind.ENGINE, str(failed)


async def test_a_deleted_job_is_the_clusters_doing(site: Site) -> None:
    order = scripted_order(on_build("log building One; sleep 60"))
    async with site.builder() as builder:
        task = asyncio.create_task(failure(builder, order))

        async def running() -> Any:
            pods = await site.pods_of(order)
            return pods and "containerID" in str(pods[0]["status"])

        await site.until(running)
        await site.kubectl("delete", "job", name_of(order), "--wait=false")
        failed = await asyncio.wait_for(task, 60)
        assert failed.kind is FailureKind.ENGINE, str(failed)
        assert "deleted" in str(failed)


async def test_a_builder_image_that_cannot_be_pulled_is_given_up_and_named(site: Site) -> None:
    order = scripted_order(GOOD)
    async with site.builder(patience=3, image="registry.invalid/none:1") as builder:
        said, failed = await waiting(builder, order)
        assert failed.kind is FailureKind.ENGINE
        assert "registry.invalid/none:1" in said
        assert "registry.invalid/none:1" in str(failed)

        async def goes() -> bool:
            return all("deletionTimestamp" in pod["metadata"] for pod in await site.pods_of(order))

        await site.until(goes, 60)


async def test_no_node_with_room_is_waited_for_and_then_told(site: Site) -> None:
    async with site.builder(node_selector={"nobody/has": "this"}, pending_limit=20) as builder:
        said, failed = await waiting(builder, scripted_order(GOOD))
        assert failed.kind is FailureKind.ENGINE
        assert "No node has room" in said
        assert "did not start within 20 s" in str(failed)


@pytest.mark.parametrize("what", ["count/jobs.batch", "pods"])
async def test_a_used_up_quota_is_waited_out(site: Site, what: str) -> None:
    have = len(await site.jobs()) if "jobs" in what else 0
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"}}
    await asyncio.to_thread(site.cluster.apply, {**quota, "spec": {"hard": {what: str(have)}}}, site.namespace)

    async def counted() -> bool:
        (found,) = await asyncio.to_thread(site.cluster.get, "resourcequotas", site.namespace)
        return what in found.get("status", {}).get("used", {})

    try:
        await site.until(counted)
        async with site.builder() as builder:
            said: list[Progress] = []
            async for progress in builder.build(scripted_order(GOOD)):
                if progress.phase is Phase.WAITING and not said:
                    assert "quota" in progress.message
                    await site.kubectl("delete", "resourcequota", "tight")
                said.append(progress)
            assert said[0].phase is Phase.WAITING
            assert text([p for p in said if p.phase is not Phase.WAITING]) == LOG
    finally:
        await site.kubectl("delete", "resourcequota", "tight", "--ignore-not-found")


async def test_a_suspended_job_waits_for_whoever_admits_it(site: Site) -> None:
    """As with Kueue: the Job is there, suspended, until there is room."""
    order = scripted_order(GOOD)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await asyncio.to_thread(site.cluster.apply, quota, site.namespace)

    async def counted() -> bool:
        (found,) = await asyncio.to_thread(site.cluster.get, "resourcequotas", site.namespace)
        return bool(found.get("status", {}).get("used"))

    async def there() -> bool:
        return name_of(order) in [j["metadata"]["name"] for j in await site.jobs()]

    try:
        await site.until(counted)
        async with site.builder() as builder:
            said: list[Progress] = []

            async def follow() -> None:
                async for progress in builder.build(order):
                    said.append(progress)
                    if "suspended" in progress.message:
                        await site.kubectl("delete", "resourcequota", "none")
                        await site.kubectl("patch", "job", name_of(order), "-p", '{"spec":{"suspend":false}}')

            task = asyncio.create_task(follow())
            await site.until(there)
            await site.kubectl("patch", "job", name_of(order), "-p", '{"spec":{"suspend":true}}')
            await asyncio.wait_for(task, 90)
            assert any("suspended" in p.message for p in said)
            assert text(said).endswith(LOG)
    finally:
        await site.kubectl("delete", "resourcequota", "none", "--ignore-not-found")


async def test_a_cluster_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch, site: Site, tmp_path: Path) -> None:
    config = re.sub(r"https://[^\s\"',}]+", "https://127.0.0.1:1", site.cluster.kubeconfig.read_text())
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("prebinder.builders.kubernetes.builder._SYNC_SECONDS", 1.0)
    configuration = Configuration.model_validate({"builder": {"kubernetes": {"namespace": site.namespace}}})
    builder = KubernetesBuilder(lambda: configuration, site.digest_of)
    try:
        with pytest.raises(EngineError, match="does not answer"):
            await builder.adopt()
        with pytest.raises(EngineError, match="does not answer"):
            await builder.health()
    finally:
        await builder.aclose()
