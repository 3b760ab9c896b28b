"""The log of one container, on an API that says what nobody foresaw. The real one is in test_faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from prebinder.builders.kubernetes.api import JOBS, PODS
from prebinder.builders.kubernetes.follow import follow_log
from prebinder.model.failure import BuildFailed, FailureKind
from tests.controller.builders.kubernetes.test_watch import ScriptedApi, job, pod, watching


class OddApi(ScriptedApi):
    """Its log ends in something that is no log."""

    async def log(self, pod: str, container: str, idle: float) -> AsyncGenerator[Any, None]:
        yield b"One\n"
        yield b"Two\n"
        raise KeyError("stream")


async def test_a_log_that_nobody_can_read_on_fails_the_build_and_leaves_nobody_waiting() -> None:
    api = OddApi()
    api.held = {JOBS: [job("a", 1)], PODS: [pod("a-1", "a", 2)]}
    said: list[bytes] = []
    async with watching(api) as watch:
        await watch.synced()

        async def read() -> None:
            async with asyncio.timeout(10):
                async for chunk in follow_log(api, watch, "a", "uid-a", "push"):  # type: ignore[arg-type]  # scripted
                    said.append(chunk)  # noqa: PERF401 - until it fails

        with pytest.raises(BuildFailed, match=r"a defect of Prebinder \(KeyError\)") as caught:
            await read()
    assert said == [b"One\n", b"Two\n"]
    assert caught.value.kind is FailureKind.ENGINE
