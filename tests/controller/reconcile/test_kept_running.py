"""A builder whose builds go on without the controller: what a restart finds, and the order in which builds may run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from prebinder.builders.base import BuildOrder, Progress
from prebinder.hosts.base import Host
from prebinder.model.events import BuildState, Phase
from prebinder.model.failure import BuildFailed, Failure, FailureKind
from prebinder.model.spec import Provider, Repository
from tests.support.controller import configured, started, until
from tests.support.memory_host import MemoryHost
from tests.support.scripted_builder import ScriptedBuilder, Shelf

Hosts = dict[Provider, Host]


class Elsewhere(ScriptedBuilder):
    """Its builds run elsewhere: here the log so far is `told`, in pieces that are never the same twice."""

    keeps_running = True

    def __init__(self, images: Shelf, told: list[str], *, gone: bool = False) -> None:
        super().__init__(images)
        self.told = told
        self.gone = gone

    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        if order.resumed and self.gone:
            raise BuildFailed(Failure(FailureKind.INTERRUPTED, "Its Job is gone."))
        yield Progress(Phase.WAITING, "Waiting for a node.\n")
        for piece in self.told:
            yield Progress(Phase.BUILDING, piece)
        async for progress in super().build(order):
            if progress.phase is Phase.PUSHING:
                yield progress


async def test_a_build_that_went_on_is_taken_up_in_the_same_attempt_and_no_line_is_lost_or_doubled(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    head = host.head(course)
    shelf = Shelf()
    first = Elsewhere(shelf, ["one\ntwo\n", "three\n"])
    first.hold(head)
    async with started(tmp_path, [{"git": course.name}], hosts, builder=first) as it:
        await until(lambda: first.orders)
        build = it.state(head).build
    assert first.detached
    assert not first.orders[0].resumed

    second = Elsewhere(shelf, ["one\n", "two\nthree\nfour\n"])
    async with started(tmp_path, [{"git": course.name}], hosts, builder=second) as it:
        record = await it.ended(build)
        assert (record.state, record.attempt) == (BuildState.READY, 1)
        events = await it.events(build)
    assert [(o.resumed, o.attempt) for o in second.orders] == [(True, 1)]
    log = "".join(e.message for e in events if e.phase is Phase.BUILDING)
    assert log == "one\ntwo\nthree\nfour\n"
    assert not any("anew" in e.message or "interrupted" in e.message for e in events)


async def test_a_build_of_which_nothing_is_left_is_tried_again_and_its_image_found(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    head = host.head(course)
    shelf = Shelf()
    first = Elsewhere(shelf, ["one\n"])
    first.hold(head)
    async with started(tmp_path, [{"git": course.name}], hosts, builder=first) as it:
        await until(lambda: first.orders)
        build = it.state(head).build
        shelf.put(first.orders[0].image)
    async with started(tmp_path, [{"git": course.name}], hosts, builder=Elsewhere(shelf, [], gone=True)) as it:
        record = await it.ended(build)
    assert (record.state, record.attempt) == (BuildState.READY, 2)


async def test_no_more_builds_of_one_repository_run_at_once_than_configured(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    limits = {"parallel": 3, "parallel_per_repository": 1}
    for name in ("a", "b"):
        host.push(course, name, branch=name)
    async with started(
        tmp_path, configured([{"git": course.name, "branches": ["*"]}], limits=limits), hosts, builder=builder
    ) as it:
        await until(lambda: sorted(e.state for e in it.entry().revisions) == ["building", "queued", "queued"])
        # The state is written down before the builder is asked.
        await until(lambda: builder.orders)
        assert len(builder.orders) == 1
        builder.release()
        await until(lambda: len(builder.orders) == 3)
    assert builder.most_at_once == 1


async def test_while_suspended_nothing_starts_and_nothing_is_lost(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    head = host.head(course)
    suspended = configured([{"git": course.name}], builder={"suspend": True})
    async with started(tmp_path, suspended, hosts) as it:
        await until(lambda: it.is_state(head, "queued"))
        assert it.builder.orders == []
        it.live.current = configured([{"git": course.name}])
        it.controller.configuration_changed()
        await until(lambda: it.is_state(head, "ready"))
