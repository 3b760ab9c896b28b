"""What a controller on Kubernetes does beside building: wait until it is the active one, and pull images ahead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prebinder.builders.kubernetes.api import Api
from prebinder.config import LiveConfiguration
from prebinder.leader import LeaseSettings, leading
from prebinder.prepull.plan import Click, Wanted, wanted
from prebinder.prepull.prepuller import Prepuller

if TYPE_CHECKING:
    from prebinder.reconcile import Controller


async def lead(
    parts: contextlib.AsyncExitStack, lease: str, port: int, stopped: asyncio.Future[None]
) -> asyncio.Event | None:
    """Wait until this controller is the active one, as long as `parts` is open; None when `stopped` comes before.

    The event is set when it is so no more. The pod's name and address come from its environment (POD_NAME, POD_IP).
    """
    settings = LeaseSettings(
        name=lease,
        identity=os.environ.get("POD_NAME") or socket.gethostname(),
        address=os.environ.get("POD_IP"),
        port=port,
        namespace=os.environ.get("POD_NAMESPACE"),
    )
    entering = asyncio.ensure_future(parts.enter_async_context(leading(settings)))
    first: list[asyncio.Future[Any]] = [entering, stopped]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if entering.done():
        return entering.result()
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    return None


@contextlib.asynccontextmanager
async def prepulling(live: LiveConfiguration, controller: Controller) -> AsyncIterator[None]:
    """Pull likely images ahead, while the block runs and as far as the configuration says."""
    settings = live.current
    api = await Api.connect(settings.prepull.namespace or settings.builder.kubernetes.namespace)

    async def images() -> Sequence[Wanted]:
        config = live.current.prepull
        clicks = {}
        if config.clicked_within:
            clicks = await controller.clicked_since(datetime.now(UTC) - timedelta(seconds=config.clicked_within))
        known = [Click(repository, ref, at) for (repository, ref), at in clicks.items()]
        return wanted(controller.catalogue(), known, config)

    prepuller = Prepuller(api, settings.builder.kubernetes.instance, lambda: live.current.prepull, images)
    controller.prepull_status = lambda: prepuller.status

    async def follow() -> None:
        async for _ in controller.catalogue_changes():
            prepuller.look_again()

    tasks = [asyncio.create_task(prepuller.run()), asyncio.create_task(follow())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await api.aclose()
