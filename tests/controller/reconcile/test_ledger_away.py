"""A ledger or a log that fails under a build: nobody waits for ever, and nothing stands in the way of the next one."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from urllib.parse import quote

import pytest

from prebinder.hosts.base import Host
from prebinder.ledger import BuildEntry, LedgerError, RepositoryMemory
from prebinder.model.events import BuildEvent, BuildState, Phase
from prebinder.model.failure import FailureKind
from prebinder.model.messages import BuildRequest
from prebinder.model.spec import Provider, Repository, git_url
from prebinder.reconcile.attempt import JournalError
from tests.support.controller import Running, configured, started, until
from tests.support.memory_host import MemoryHost
from tests.support.scripted_builder import ScriptedBuilder, Shelf

Hosts = dict[Provider, Host]


def fails(it: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def put_build(entry: BuildEntry) -> None:
        raise LedgerError("The ledger is away.")

    monkeypatch.setattr(it.ledger, "put_build", put_build)


async def full(build: str, event: BuildEvent) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def following(it: Running, build: str) -> asyncio.Task[list[BuildEvent]]:
    return asyncio.create_task(it.events(build))


async def test_who_follows_a_build_hears_its_end(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with started(tmp_path, [{"git": course.name}], hosts, builder=builder) as it:
        await until(lambda: builder.orders)
        build = builder.orders[0].id
        follower = following(it, build)
        with monkeypatch.context() as broken:
            broken.setattr(it.logs, "append", full)
            builder.release()
            end = (await follower)[-1]
        assert (end.phase, end.failure) == (Phase.FAILED, FailureKind.INTERNAL)
        assert "could not write down" in end.message
        assert (await it.events(build))[-1].phase is Phase.FAILED, "also for whoever comes later"


async def test_a_cancel_that_cannot_be_written_down_leaves_nothing_that_hangs(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended = configured([{"git": course.name}], builder={"suspend": True})
    async with started(tmp_path, suspended, hosts) as it:
        entry = await until(lambda: next((e for e in it.entry().revisions if e.state == "queued"), None))
        follower = following(it, entry.build)
        with monkeypatch.context() as broken:
            fails(it, broken)
            with pytest.raises(LedgerError):
                await it.controller.cancel(entry.build)
            assert (await follower)[-1].phase is Phase.FAILED
        reply = await it.controller.request_build(
            BuildRequest(provider="git", spec=f"{quote(course.name, safe='')}/main", rebuild=True)
        )
        assert reply.build is not None
        assert reply.build.id != entry.build
        assert reply.build.state is BuildState.QUEUED


async def test_a_configuration_that_comes_while_the_ledger_is_away_is_applied_when_it_is_back(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = git_url("https://memory.invalid/other")
    host.push(other, "First")
    asked: list[str] = []

    async def repositories() -> dict[str, RepositoryMemory]:
        asked.append("repositories")
        raise LedgerError("The ledger is away.")

    async with started(tmp_path, [{"git": course.name}], hosts) as it:
        await until(lambda: it.is_state(host.head(course), "ready"))
        with monkeypatch.context() as broken:
            broken.setattr(it.ledger, "repositories", repositories)
            it.live.current = configured([{"git": course.name}, {"git": other.name}])
            it.controller.configuration_changed()
            await until(lambda: len(asked) == 2)
        await until(lambda: it.is_state(host.head(other), "ready"))


async def test_builds_of_a_repository_that_is_gone_end_also_when_its_memory_cannot_be_written(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with started(tmp_path, [{"git": course.name}], hosts, builder=builder) as it:
        await until(lambda: builder.orders)

        async def remember(*_: object, **__: object) -> None:
            raise LedgerError("The ledger is away.")

        with monkeypatch.context() as broken:
            broken.setattr(it.ledger, "remember", remember)
            it.controller._views[str(course)].changed = True
            it.live.current = configured([])
            it.controller.configuration_changed()
            await until(lambda: builder.ended == [host.head(course)])


async def test_who_joins_a_build_that_cannot_be_queued_hears_its_end(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    click = BuildRequest(provider="git", spec=f"{quote(course.name, safe='')}/aside")
    reached, joined = asyncio.Event(), asyncio.Event()

    async def full_soon(build: str, event: BuildEvent) -> None:
        reached.set()
        await joined.wait()
        await full(build, event)

    async with started(tmp_path, [{"git": course.name}], hosts) as it:
        await until(lambda: it.is_state(host.head(course), "ready"))
        host.push(course, "Aside", branch="aside")
        with monkeypatch.context() as broken:
            broken.setattr(it.logs, "append", full_soon)
            first = asyncio.create_task(it.controller.request_build(click))
            await asyncio.wait_for(reached.wait(), 20)
            second = (await it.controller.request_build(click)).build
            assert second is not None
            follower = following(it, second.id)
            joined.set()
            with pytest.raises(JournalError):
                await first
            assert (await follower)[-1].phase is Phase.FAILED
        assert (await it.ended(second.id)).state is BuildState.FAILED
        assert await it.ledger.unfinished() == []
        again = (await it.controller.request_build(click)).build
        assert again is not None
        assert (await it.ended(again.id)).state is BuildState.READY
