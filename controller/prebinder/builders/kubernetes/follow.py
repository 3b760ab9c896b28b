"""The log of one container, as it comes, whatever happens to the connection.

Guarantees: every byte once and in order, from the first one; read on after a connection broke off; ended when the
container has ended and all of it was read, or when it cannot be read. It goes through a queue, so that the reader is
never cancelled in the middle of something else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog

from prebinder.builders.kubernetes import failures
from prebinder.builders.kubernetes.api import Api, ApiAway, ApiRefused, Object
from prebinder.builders.kubernetes.watch import Watch
from prebinder.model.failure import BuildFailed, Failure, FailureKind

log = structlog.get_logger(__name__)

_QUEUE = 32
_IDLE_SECONDS = 600.0
_AFTER_END = 10.0
_PAUSES = (0.2, 10.0)


async def follow_log(api: Api, watch: Watch, job: str, uid: str, container: str) -> AsyncGenerator[bytes, None]:
    """The log of a container that has begun, of the newest pod of a Job; ends when the pod is gone, too.

    Raises BuildFailed when what comes cannot be understood.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUE)
    pump = asyncio.create_task(_pump(api, watch, job, uid, container, queue), name=f"log of {job}/{container}")
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        await pump
    finally:
        pump.cancel()
        await asyncio.wait([pump])


async def _pump(api: Api, watch: Watch, job: str, uid: str, container: str, queue: asyncio.Queue[bytes | None]) -> None:
    """All of it, and None at the end, however it ends: the reader waits for that."""
    failed: BuildFailed | None = None
    try:
        await _read_all(api, watch, job, uid, container, queue)
    except Exception as error:
        log.exception("log.defect", job=job, container=container)
        problem = f"The build's log cannot be read: a defect of Prebinder ({type(error).__name__})."
        failed = BuildFailed(Failure(FailureKind.ENGINE, f"{problem} The controller's log says more."))
    await queue.put(None)
    if failed is not None:
        raise failed


async def _read_all(
    api: Api, watch: Watch, job: str, uid: str, container: str, queue: asyncio.Queue[bytes | None]
) -> None:
    read, which, pause = 0, "", _PAUSES[0]
    while (pod := watch.seen(job).pod(uid)) is not None:
        now = str(failures.container_status(pod, container).get("containerID", ""))
        if now and now != which:  # the kubelet began it anew: another log
            read, which = 0, now
        whole = failures.ended(pod, container) is not None
        before = read
        try:
            read = await _read(api, watch, job, uid, container, pod, read, queue)
            pause = _PAUSES[0]
            if whole:
                break
        except _Behind as error:
            read = error.read
            if whole and read == before and not error.away:
                break
        except ApiRefused as error:
            if error.status == 404 or whole:
                break
        await _wait_for_end(watch, job, uid, container, pause)
        pause = min(2 * pause, _PAUSES[1])


class _Behind(Exception):
    """A stream broke off (`away`) or went silent after `read` bytes."""

    def __init__(self, read: int, away: bool) -> None:
        super().__init__()
        self.read = read
        self.away = away


async def _read(
    api: Api,
    watch: Watch,
    job: str,
    uid: str,
    container: str,
    pod: Object,
    read: int,
    queue: asyncio.Queue[bytes | None],
) -> int:
    """One stream, from its first byte; those that were read before are passed over."""
    skip = read
    ender: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(None) as limit:
            ender = asyncio.create_task(_limit_after_end(watch, job, uid, container, limit))
            stream = api.log(pod["metadata"]["name"], container, _IDLE_SECONDS)
            async with contextlib.aclosing(stream):
                async for chunk in stream:
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    if fresh:
                        await queue.put(fresh)
                        read += len(fresh)
    except ApiAway:
        raise _Behind(read, away=True) from None
    except TimeoutError:
        raise _Behind(read, away=False) from None
    finally:
        if ender is not None:
            ender.cancel()
            await asyncio.wait([ender])
    return read


async def _limit_after_end(watch: Watch, job: str, uid: str, container: str, limit: asyncio.Timeout) -> None:
    """Once the container has ended its log ends in a moment; a stream that does not is dead."""
    await _wait_for_end(watch, job, uid, container, None)
    limit.reschedule(asyncio.get_running_loop().time() + _AFTER_END)


async def _wait_for_end(watch: Watch, job: str, uid: str, container: str, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (pod := watch.seen(job).pod(uid)) is not None and failures.ended(pod, container) is None:
                await watch.changed(job, watch.seen(job).turn)
