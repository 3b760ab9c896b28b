"""`prebinder controller` with a Lease: what ends its start, and how."""

from __future__ import annotations

import asyncio

import pytest

from prebinder.cli.apart import broken_off, until_over
from prebinder.model.failure import EngineError


async def start_that_hangs(stopped: asyncio.Future[None], lost: asyncio.Event, hangs: asyncio.Event) -> None:
    async with broken_off(stopped, lost):
        hangs.set()
        await asyncio.Event().wait()
    await until_over(stopped, lost)


async def hanging() -> tuple[asyncio.Task[None], asyncio.Future[None], asyncio.Event]:
    stopped, lost, hangs = asyncio.get_running_loop().create_future(), asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(start_that_hangs(stopped, lost, hangs))
    await hangs.wait()
    return task, stopped, lost


async def test_a_start_that_hangs_is_broken_off_when_the_lease_is_lost() -> None:
    task, _, lost = await hanging()
    lost.set()
    with pytest.raises(EngineError, match="The Lease is lost"):
        await asyncio.wait_for(task, 10)


async def test_a_start_that_hangs_is_broken_off_when_it_is_told_to_stop() -> None:
    task, stopped, _ = await hanging()
    stopped.set_result(None)
    await asyncio.wait_for(task, 10)


async def test_a_start_that_fails_by_itself_fails() -> None:
    stopped = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        async with broken_off(stopped, asyncio.Event()):
            raise TimeoutError
