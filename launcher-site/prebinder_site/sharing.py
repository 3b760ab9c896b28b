"""One question at a time, however many ask: calls with the same key share one answer, kept for a short while.

A hundred clicks at once on one link ask the registry, the Git host or the controller once. Failures are shared by
those who wait, and not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def _is_answer(value: object) -> bool:
    return value is not None


class SharedCalls(Generic[K, V]):
    """Answers are kept for `ttl` seconds (0: only shared while under way), at most `size` of them.

    `worth_keeping` says which answers are kept (by default all but None). A caller that goes away does not end
    the call for the others.
    """

    def __init__(self, ttl: float, size: int = 4096, worth_keeping: Callable[[V], bool] = _is_answer) -> None:
        self._kept: TTLCache[K, V] = TTLCache(maxsize=size, ttl=ttl)
        self._under_way: dict[K, asyncio.Task[V]] = {}
        self._worth_keeping = worth_keeping

    def kept(self, key: K) -> V | None:
        """The kept answer, without asking."""
        return self._kept.get(key)

    def under_way(self, key: K) -> bool:
        return key in self._under_way

    def keep(self, key: K, value: V) -> None:
        """Keep an answer that came another way."""
        self._kept[key] = value

    def forget(self, key: K) -> None:
        self._kept.pop(key, None)

    async def ask(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """The kept answer, or that of the call under way, or that of a new call."""
        if (kept := self._kept.get(key)) is not None:
            return kept
        return await asyncio.shield(self.start(key, call))

    def start(self, key: K, call: Callable[[], Awaitable[V]]) -> asyncio.Task[V]:
        """The call under way, started now if there is none."""
        if task := self._under_way.get(key):
            return task

        async def run() -> V:
            return await call()

        task = asyncio.create_task(run())
        self._under_way[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: K, task: asyncio.Task[V]) -> None:
        self._under_way.pop(key, None)
        # Reading the exception here keeps asyncio from reporting it when nobody waited for the end.
        if not task.cancelled() and task.exception() is None and self._worth_keeping(task.result()):
            self._kept[key] = task.result()

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
