"""The log store: kept as it comes, followed from the first line by any number of people, whole after a crash."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prebinder.builders.logs import LogStore
from prebinder.model.events import BuildEvent, Phase
from prebinder.model.failure import FailureKind
from tests.support.small_disk import small_disk

__all__ = ["small_disk"]

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


def event(seq: int, message: str = "…\n", phase: Phase = Phase.BUILDING) -> BuildEvent:
    return BuildEvent(seq=seq, at=AT, phase=phase, message=message)


def failed(seq: int) -> BuildEvent:
    return BuildEvent(seq=seq, at=AT, phase=Phase.FAILED, message="no\n", failure=FailureKind.REPOSITORY)


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(tmp_path / "logs")


async def collect(store: LogStore, build: str, after: int = 0) -> list[int]:
    return [e.seq async for e in store.follow(build, after)]


async def test_events_come_back_as_they_were(store: LogStore) -> None:
    written = [event(1, "größer\n"), event(2, "a\nb\n"), failed(3)]
    for one in written:
        await store.append("b1", one)
    assert await store.read("b1") == written
    assert await store.read("b1", after=2) == written[2:]
    assert await store.last("b1") == written[-1]
    assert await store.read("b2") == []


async def test_a_follower_gets_stored_then_live_events_and_ends(store: LogStore) -> None:
    await store.append("b1", event(1))
    followers = [asyncio.create_task(collect(store, "b1")) for _ in range(20)]
    late = asyncio.create_task(collect(store, "b1", after=2))
    for seq in range(2, 50):
        await store.append("b1", event(seq))
        await asyncio.sleep(0)
    await store.append("b1", failed(50))
    async with asyncio.timeout(10):
        assert await asyncio.gather(*followers) == [list(range(1, 51))] * 20
        assert await late == list(range(3, 51))
        assert await collect(store, "b1") == list(range(1, 51))


async def test_a_follower_may_come_before_the_first_event(store: LogStore) -> None:
    follower = asyncio.create_task(collect(store, "b1"))
    await asyncio.sleep(0)
    await store.append("b1", failed(1))
    async with asyncio.timeout(10):
        assert await follower == [1]


async def test_a_follower_that_does_not_read_holds_up_nobody(store: LogStore) -> None:
    await store.append("b1", event(1))
    slow = store.follow("b1")
    assert (await anext(slow)).seq == 1
    fast = asyncio.create_task(collect(store, "b1"))
    for seq in range(2, 2000):
        await store.append("b1", event(seq, "x" * 500 + "\n"))
    await store.append("b1", failed(2000))
    async with asyncio.timeout(20):
        assert await fast == list(range(1, 2001))
        assert [e.seq async for e in slow] == list(range(2, 2001))


async def test_followers_end_when_the_log_is_deleted(store: LogStore) -> None:
    await store.append("b1", event(1))
    follower = store.follow("b1")
    await anext(follower)
    rest = asyncio.create_task(anext(follower, None))
    await asyncio.sleep(0)
    assert await store.delete("b1")
    async with asyncio.timeout(10):
        assert await rest is None
    assert not await store.delete("b1")
    assert await store.read("b1") == []


async def test_a_torn_last_line_is_not_read_and_not_continued(store: LogStore, tmp_path: Path) -> None:
    await store.append("b1", event(1))
    log = tmp_path / "logs" / "b1.jsonl"
    with log.open("ab") as file:
        file.write(event(2).model_dump_json().encode()[:25])
    assert [e.seq for e in await store.read("b1")] == [1]
    again = LogStore(tmp_path / "logs")
    last = await again.recover("b1")
    assert last is not None
    assert last.seq == 1
    await again.append("b1", failed(2))
    assert [e.seq for e in await again.read("b1")] == [1, 2]
    assert await again.recover("never") is None


async def test_a_new_process_goes_on_after_a_torn_line_without_being_told(store: LogStore, tmp_path: Path) -> None:
    await store.append("b1", event(1))
    with (tmp_path / "logs" / "b1.jsonl").open("ab") as file:
        file.write(b'{"seq": 2, "at"\n')
    again = LogStore(tmp_path / "logs")
    await again.append("b1", failed(2))
    assert [e.seq for e in await again.read("b1")] == [1, 2]


async def test_numbers_have_no_gaps(store: LogStore) -> None:
    await store.append("b1", event(1))
    with pytest.raises(ValueError, match="follows 1"):
        await store.append("b1", event(3))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "-x", "a\0b", "x" * 200, "a.jsonl"])
async def test_an_id_never_leaves_the_folder(store: LogStore, name: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        await store.append(name, event(1))
    with pytest.raises(ValueError, match="not the id"):
        await store.read(name)


async def test_a_log_that_cannot_be_written_on_ends_for_those_who_follow_and_those_who_come(store: LogStore) -> None:
    await store.append("b1", event(1))
    following = asyncio.create_task(collect(store, "b1"))
    await asyncio.sleep(0)
    store.lose("b1", AT, FailureKind.INTERNAL, "The disk is full.")
    async with asyncio.timeout(20):
        assert await following == [1, 2]
        last = [e async for e in store.follow("b1")][-1]
    assert (last.phase, last.failure, last.message) == (Phase.FAILED, FailureKind.INTERNAL, "The disk is full.\n")
    assert [e.seq for e in await store.read("b1")] == [1], "it is not stored"
    await store.recover("b1")
    await store.append("b1", event(2))
    assert [e.seq for e in await store.read("b1")] == [1, 2], "the next start goes on"


async def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_half_of_it(small_disk: Path) -> None:
    store = LogStore(small_disk)
    await store.append("b1", event(1))
    with pytest.raises(OSError, match="No space left"):
        await store.append("b1", event(2, "x" * 2_000_000 + "\n"))
    assert (small_disk / "b1.jsonl").read_bytes().endswith(b"}\n")
    await store.append("b1", event(2))
    assert [e.seq for e in await store.read("b1")] == [1, 2]
