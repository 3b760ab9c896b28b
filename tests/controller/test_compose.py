"""The parts as they are wired."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from prebinder import compose
from tests.support.endpoint import catalogue
from tests.support.serving import serving
from tests.support.standin_controller import StandinController

FOLLOWED = 150
"""Builds at once: more than httpx's own limit of connections."""


@asynccontextmanager
async def connected(*, apart: bool, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The endpoint's client, connected to a controller that has one unfinished build."""
    controller = StandinController(catalogue(), builds={"b1": []})
    if apart:
        async with serving(controller.app()) as url, compose.controller_client(url) as client:
            yield client
    else:
        uds = folder / "socket"
        async with compose.served(controller.app(), uds=uds), compose.controller_client(uds=uds) as client:
            yield client


@pytest.mark.parametrize("apart", [True, False])
async def test_any_number_of_followed_builds_leaves_room_for_the_next_question(tmp_path: Path, apart: bool) -> None:
    async with connected(apart=apart, folder=tmp_path) as client, AsyncExitStack() as streams:
        for _ in range(FOLLOWED):
            stream = await streams.enter_async_context(client.stream("GET", "/api/builds/b1/events"))
            assert stream.status_code == 200
        assert (await client.get("/api/status")).status_code == 200
