"""Launch records on their way to the controller."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import httpx

from prebinder.model.messages import LaunchRecord
from prebinder_site.records import LaunchRecords


def launch(ref: str) -> LaunchRecord:
    at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    return LaunchRecord(
        at=at, provider="gh", repository="gh/ada/course", ref=ref, revision=None, image=None, ok=True, seconds=1.0
    )


async def test_records_whose_sending_is_cancelled_are_sent_by_the_last_flush() -> None:
    arrived, answers = asyncio.Event(), asyncio.Event()
    taken: list[str] = []

    async def controller(request: httpx.Request) -> httpx.Response:
        arrived.set()
        await answers.wait()
        taken.extend(record["ref"] for record in json.loads(request.content))
        return httpx.Response(204)

    async with httpx.AsyncClient(transport=httpx.MockTransport(controller), base_url="http://controller") as client:
        records = LaunchRecords(client)
        records.add(launch("first"))
        records.add(launch("second"))
        sending = asyncio.create_task(records.flush())
        await asyncio.wait_for(arrived.wait(), 10)
        records.add(launch("third"))
        sending.cancel()
        await asyncio.wait([sending])
        answers.set()
        assert await records.flush()
    assert taken == ["first", "second", "third"]
