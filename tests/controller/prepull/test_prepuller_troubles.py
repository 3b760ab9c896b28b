"""Pulling ahead when its surroundings fail, against an API that has one node and no pods."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from prebinder.config.prepull import PrepullConfig
from prebinder.ledger.migrate import LedgerError
from prebinder.prepull.plan import Wanted
from prebinder.prepull.prepuller import Prepuller
from tests.support.controller import until


class OneNodeApi:
    """What the prepuller asks of a cluster as long as nothing is to be pulled."""

    namespace = "pulls"

    async def all(self, kind: tuple[str, str], selector: str) -> tuple[list[Any], str]:
        return [], "1"

    async def ask(self, method: str, path: str, **_: Any) -> Any:
        assert (method, path) == ("GET", "api/v1/nodes")
        status = {"conditions": [{"type": "Ready", "status": "True"}]}
        return {"items": [{"metadata": {"name": "node-1"}, "status": status}]}


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(LedgerError("The database does not answer."), "The database does not answer."), (KeyError("x"), "KeyError")],
    ids=["ledger", "defect"],
)
async def test_a_look_that_fails_is_told_and_the_next_one_comes_nevertheless(trouble: Exception, words: str) -> None:
    troubles = [trouble]

    async def images() -> Sequence[Wanted]:
        if troubles:
            raise troubles[0]
        return []

    prepuller = Prepuller(OneNodeApi(), "test", lambda: PrepullConfig(enabled=True), images)  # type: ignore[arg-type]
    task = asyncio.create_task(prepuller.run())
    try:
        await until(lambda: words in str(prepuller.status.problem))
        assert prepuller.status.enabled
        troubles.clear()
        prepuller.look_again()
        await until(lambda: prepuller.status.problem is None)
        assert [node.name for node in prepuller.status.nodes] == ["node-1"]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
