"""Builds that are asked for, joined, retried, cancelled, superseded, and go on after the controller was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from prebinder.hosts.base import Host
from prebinder.model.events import BuildState, Phase, Priority
from prebinder.model.failure import FailureKind
from prebinder.model.images import image_name
from prebinder.model.messages import BuildReply, BuildRequest
from prebinder.model.spec import Provider, Repository, git_url
from prebinder.reconcile import BuildEnded, BuildNotFound, QueueFull
from tests.support.controller import PREFIX, Running, configured, started, until
from tests.support.memory_host import MemoryHost
from tests.support.scripted_builder import ScriptedBuilder, Shelf

Hosts = Mapping[Provider, Host]


def url(repository: Repository) -> dict[str, str]:
    return {"git": repository.name}


async def ask(
    it: Running,
    repository: Repository,
    ref: str = "HEAD",
    priority: Priority = Priority.PERSON,
    rebuild: bool = False,
) -> BuildReply:
    spec = f"{quote(repository.name, safe='')}/{ref}"
    request = BuildRequest(provider="git", spec=spec, priority=priority, rebuild=rebuild)
    return await it.controller.request_build(request)


async def build_of(it: Running, revision: str) -> str:
    entry = await until(lambda: (e := it.state(revision)) and e.build and e)
    return str(entry.build)


async def test_the_events_of_a_build_are_numbered_and_end_with_the_image(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    async with started(tmp_path, [url(course)], hosts) as it:
        build = await build_of(it, host.head(course))
        events = await it.events(build)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert [e.phase for e in events] == ["waiting", "fetching", "building", "pushing", "built"]
        assert events[-1].image == it.images.held[str(it.image(course, host.head(course)))]
        record = await it.ended(build)
        assert (record.state, record.attempt, record.failure) == (BuildState.READY, 1, None)
        assert record.started_at
        assert record.finished_at


async def test_however_many_ask_one_image_is_built_once_and_a_person_comes_first(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    others = [git_url(f"https://memory.invalid/other-{n}") for n in range(3)]
    for other in others:
        host.push(other, "First")
    configuration = configured([url(r) for r in (course, *others)], limits={"parallel": 1})
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        await until(lambda: len(builder.orders) == 1)
        running = builder.orders[0].repository
        waits = next(r for r in reversed(others) if r != running)
        await until(lambda: it.is_state(host.head(waits), "queued"))
        replies = await asyncio.gather(*(ask(it, waits) for _ in range(20)))
        assert len({reply.build.id for reply in replies if reply.build}) == 1
        assert replies[0].build is not None
        assert replies[0].build.priority is Priority.PERSON
        builder.release(builder.orders[0].revision)
        await until(lambda: len(builder.orders) == 2)
        assert builder.orders[1].repository == waits
        builder.release()
        await until(lambda: all(it.is_state(host.head(r), "ready") for r in (course, *others)))
        assert len(builder.orders) == 4


async def test_no_more_builds_run_at_once_than_configured(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    repositories = [git_url(f"https://memory.invalid/r{n}") for n in range(6)]
    for repository in repositories:
        host.push(repository, "First")
    configuration = configured([url(r) for r in repositories], limits={"parallel": 3})
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        await until(lambda: len(builder.orders) == 3 and len(it.catalogue.recent_builds) == 6)
        builder.release()
        await until(lambda: all(it.is_state(host.head(r), "ready") for r in repositories))
        assert builder.most_at_once == 3


async def test_a_request_for_an_image_that_exists_is_answered_with_it(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    older, newest = host.head(course), host.push(course, "Second")
    there = images.put(image_name(PREFIX, course, older))
    async with started(tmp_path, [url(course)], hosts, images=images) as it:
        await until(lambda: it.is_state(newest, "ready"))
        assert (await ask(it, course, "main")).launchable == images.held[str(it.image(course, newest))]
        reply = await ask(it, course, older)
        assert (reply.revision, reply.launchable, reply.build) == (older, there, None)
        assert it.is_state(older, "ready"), "the catalogue knows it from now on"


async def test_what_the_surroundings_broke_is_tried_again_with_one_terminal_event(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf())
    head = host.head(course)
    builder.fail(head, FailureKind.ENGINE, FailureKind.REGISTRY)
    async with started(tmp_path, [url(course)], hosts, builder=builder) as it:
        build = await build_of(it, head)
        events = await it.events(build)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert [e.phase for e in events if e.terminal] == [Phase.BUILT]
        pauses = [e.message for e in events if e.phase is Phase.WAITING][1:]
        assert ["Attempt 2 of 4" in pauses[0], "Attempt 3 of 4" in pauses[1]] == [True, True]
        assert "0.02 s" in pauses[0]
        assert "0.04 s" in pauses[1]
        assert "The container engine failed" in pauses[0]
        record = await it.ended(build)
        assert (record.state, record.attempt) == (BuildState.READY, 3)


async def test_retries_end(tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts) -> None:
    builder = ScriptedBuilder(Shelf())
    head = host.head(course)
    builder.fail(head, *[FailureKind.ENGINE] * 10)
    configuration = configured([url(course)], limits={"attempts": 2})
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        record = await it.ended(await build_of(it, head))
        assert (record.state, record.attempt, record.failure) == (BuildState.FAILED, 2, FailureKind.ENGINE)
        assert len(builder.orders) == 2
        # A person who clicks gets another go.
        reply = await ask(it, course)
        assert reply.build is not None
        assert reply.build.id != record.id


async def test_a_build_without_an_image_at_its_end_is_never_called_built(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), lose_images=True)
    configuration = configured([url(course)], limits={"attempts": 1})
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        build = await build_of(it, host.head(course))
        events = await it.events(build)
        assert (events[-1].phase, events[-1].failure) == (Phase.FAILED, FailureKind.REGISTRY)
        await until(lambda: it.is_state(host.head(course), "failed"))


async def test_a_failed_revision_answers_with_its_build_until_somebody_asks_to_rebuild(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf())
    builder.fail(host.head(course), FailureKind.REPOSITORY)
    async with started(tmp_path, [url(course)], hosts, builder=builder) as it:
        failed = await it.ended(await build_of(it, host.head(course)))
        again = await ask(it, course)
        assert again.build is not None
        assert (again.build.id, again.build.state) == (failed.id, BuildState.FAILED)
        rebuilt = await ask(it, course, rebuild=True)
        assert rebuilt.build is not None
        assert (await it.ended(rebuilt.build.id)).state is BuildState.READY


async def test_a_failure_is_tried_again_when_the_settings_that_it_depends_on_change(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf())
    builder.fail(host.head(course), FailureKind.MEMORY)
    async with started(tmp_path, [url(course)], hosts, builder=builder) as it:
        await until(lambda: it.is_state(host.head(course), "failed"))
        it.live.current = configured([url(course)], limits={"memory": "8G"})
        it.controller.configuration_changed()
        await until(lambda: it.is_state(host.head(course), "ready"))
        assert builder.orders[-1].memory_limit == 8 * 10**9


async def test_a_cancelled_build_ends_and_is_not_started_again_by_itself(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    head = host.head(course)
    async with started(tmp_path, [url(course)], hosts, builder=builder) as it:
        await until(lambda: builder.orders)
        build = await build_of(it, head)
        await it.controller.cancel(build[:6])
        events = await it.events(build)
        assert (events[-1].phase, events[-1].failure) == (Phase.FAILED, FailureKind.CANCELLED)
        assert (await it.ended(build)).state is BuildState.CANCELLED
        assert builder.ended == [head], "the builder was told"
        with pytest.raises(BuildEnded):
            await it.controller.cancel(build)
        with pytest.raises(BuildNotFound):
            await it.controller.cancel("ffff")
        it.controller.configuration_changed()  # a round comes
        looked = it.entry().looked_at
        await until(lambda: it.entry().looked_at != looked)
        assert it.is_state(head, "absent")
        builder.release()
        reply = await ask(it, course)
        assert reply.build is not None
        assert (await it.ended(reply.build.id)).state is BuildState.READY


async def test_a_waiting_build_is_cancelled_without_ever_running(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with started(tmp_path, configured([url(course)], limits={"parallel": 1}), hosts, builder=builder) as it:
        await until(lambda: len(builder.orders) == 1)
        other = host.push(course, "Second")
        reply = await ask(it, course, "main")
        assert reply.build is not None
        await it.controller.cancel(reply.build.id)
        assert (await it.ended(reply.build.id)).state is BuildState.CANCELLED
        builder.release()
        await until(lambda: it.is_state(host.branches[course, "main"][0].revision, "ready"))
        assert other not in builder.revisions


async def test_with_newest_a_push_supersedes_the_build_of_the_one_before_but_not_a_persons(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    first = host.head(course)
    registered = {**url(course), "build": "newest"}
    async with started(tmp_path, [registered], hosts, builder=builder) as it:
        await until(lambda: builder.orders)
        second = host.push(course, "Second")
        it.controller.configuration_changed()
        await until(lambda: it.is_state(second, "building"))
        assert builder.ended == [first]
        assert it.is_state(first, "absent")
        await ask(it, course)  # somebody waits for the second
        third = host.push(course, "Third")
        it.controller.configuration_changed()
        await until(lambda: it.is_state(third, "building"))
        assert it.is_state(second, "building")
        builder.release()
        await until(lambda: it.is_state(second, "ready") and it.is_state(third, "ready"))


async def test_a_full_queue_refuses_people_with_a_clear_answer_and_pushes_wait(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    others = [git_url(f"https://memory.invalid/other-{n}") for n in range(3)]
    for other in others:
        host.push(other, "First")
    configuration = configured(
        [url(r) for r in (course, *others)], limits={"parallel": 1, "queue": 1}, polling={"interval": 1}
    )
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        await until(lambda: len(builder.orders) == 1 and sum(bool(e.looked_at) for e in it.catalogue.repositories) == 4)
        revision = host.push(course, "Another", branch="asked")
        with pytest.raises(QueueFull, match=r"limits\.queue"):
            await ask(it, course, "asked")
        builder.release()
        await until(lambda: all(it.is_state(host.head(r), "ready") for r in (course, *others)))
        reply = await ask(it, course, "asked")
        assert reply.revision == revision


async def test_a_stopped_controller_leaves_its_builds_to_the_next(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    head = host.head(course)
    stuck = ScriptedBuilder(images, hold_all=True)
    async with started(tmp_path, [url(course)], hosts, builder=stuck) as it:
        await until(lambda: stuck.orders)
        build = await build_of(it, head)
    assert stuck.ended == [head]
    async with started(tmp_path, [url(course)], hosts, images=images) as it:
        record = await it.ended(build)
        assert (record.state, record.attempt) == (BuildState.READY, 1), "stopping is nobody's failure"
        events = await it.events(build)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert len([e for e in events if e.terminal]) == 1
        assert it.builder.adopted == 1


async def test_a_build_torn_away_is_tried_again_at_once(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    head = host.head(course)
    configuration = configured([url(course)], limits={"backoff": 3600, "backoff_max": 3600})
    async with started(tmp_path, configuration, hosts, builder=ScriptedBuilder(images, hold_all=True), kill=True) as it:
        await until(lambda: it.builder.orders)
        build = await build_of(it, head)
    async with started(tmp_path, configuration, hosts, images=images) as it:
        record = await it.ended(build)
        assert (record.state, record.attempt) == (BuildState.READY, 2)
        assert any("interrupted" in e.message for e in await it.events(build))


async def test_an_image_that_was_pushed_in_the_last_moment_is_taken_as_it_is(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    head = host.head(course)
    async with started(tmp_path, [url(course)], hosts, builder=ScriptedBuilder(images, hold_all=True), kill=True) as it:
        await until(lambda: it.builder.orders)
        build = await build_of(it, head)
    images.put(image_name(PREFIX, course, head))
    async with started(tmp_path, [url(course)], hosts, images=images) as it:
        assert (await it.ended(build)).state is BuildState.READY
        assert it.builder.orders == []


async def test_waiting_builds_wait_on_after_a_restart(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    configuration = configured([url(course)], limits={"parallel": 1})
    builder = ScriptedBuilder(images, hold_all=True)
    async with started(tmp_path, configuration, hosts, builder=builder, kill=True) as it:
        await until(lambda: len(builder.orders) == 1)
        asked = host.push(course, "Asked", branch="asked")
        reply = await ask(it, course, "asked")
        assert reply.build is not None
    async with started(tmp_path, configuration, hosts, images=images) as it:
        assert (await it.ended(reply.build.id)).state is BuildState.READY
        assert it.builder.revisions[0] == asked, "the person is still the first"


async def test_a_registry_that_is_away_neither_breaks_nor_rebuilds_what_is_ready(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    async with started(tmp_path, configured([url(course)], polling={"interval": 1}), hosts) as it:
        head = host.head(course)
        await until(lambda: it.is_state(head, "ready"))
        it.images.away = "The registry does not answer."
        await until(lambda: it.entry().problem == "The registry does not answer.")
        assert it.is_state(head, "ready")
        assert (await ask(it, course)).launchable
        health = await it.controller.health()
        assert not health.ok
        assert [check.service for check in health.checks if not check.ok] == ["registry"]
        it.images.away = None
        await until(lambda: it.entry().problem is None)
        assert len(it.builder.orders) == 1


async def test_an_image_that_was_deleted_is_noticed_and_built_again(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    configuration = configured([url(course)], polling={"interval": 1})
    async with started(tmp_path, configuration, hosts) as it:
        head = host.head(course)
        await until(lambda: it.is_state(head, "ready"))
        it.images.held.clear()
        await until(lambda: len(it.builder.orders) == 2)
        await until(lambda: it.is_state(head, "ready"))


async def test_a_build_whose_log_is_not_here_ends_as_the_ledger_says(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    images = Shelf()
    builder = ScriptedBuilder(images)
    good, bad = host.head(course), host.push(course, "Bad", branch="bad")
    builder.fail(bad, FailureKind.REPOSITORY)
    async with started(tmp_path, [url(course)], hosts, builder=builder) as it:
        ready = await it.ended(await build_of(it, good))
        reply = await ask(it, course, "bad")
        assert reply.build is not None
        told = (await it.events(reply.build.id))[-1]
        failed = await it.ended(reply.build.id)
    for log in (tmp_path / "builds").iterdir():
        log.unlink()
    async with started(tmp_path, [url(course)], hosts, images=images) as it:
        again = await ask(it, course, "bad")
        assert again.build == failed
        (end,) = await it.events(failed.id)
        assert (end.seq, end.phase, end.failure, end.message) == (1, told.phase, told.failure, told.message)
        (end,) = [event async for event in await it.controller.events(failed.id, after=40)]
        assert end.seq == 41, "news also for whoever read that far elsewhere"
        (end,) = await it.events(ready.id)
        assert (end.phase, end.image) == (Phase.BUILT, images.held[ready.image])
        images.held.clear()
        (end,) = await it.events(ready.id)
        assert (end.phase, end.image) == (Phase.FAILED, None)
