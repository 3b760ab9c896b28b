"""What is kept of launches: a line in the launch log at once, a record for the controller's ledger in the background.

Never holds up a click: records wait in a bounded buffer while the controller is away; the oldest are lost first.
The launch log has one JSON object a line, BinderHub's schema `binderhub.jupyter.org/launch`, version 6; unlike
BinderHub's it also has failures, with their kind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path

import httpx
import structlog

from prebinder.model.messages import LaunchRecord

log = structlog.get_logger(__name__)

_BUFFER = 10_000
_BATCH = 500
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_SCHEMA, _VERSION = "binderhub.jupyter.org/launch", 6
_LOG_SIZE, _LOG_FILES = 10 * 2**20, 5


class LaunchLog:
    """The launch log in a file that rotates."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = RotatingFileHandler(path, maxBytes=_LOG_SIZE, backupCount=_LOG_FILES, delay=True)
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.Logger("prebinder.launches", logging.INFO)
        logger.addHandler(self._handler)
        self._log = structlog.wrap_logger(
            logger,
            processors=[
                structlog.processors.TimeStamper(fmt="iso", key="timestamp"),
                structlog.processors.EventRenamer("schema"),
                structlog.processors.JSONRenderer(),
            ],
        )

    def write(self, record: LaunchRecord, *, spec: str, provider_name: str, origin: str, request_origin: str) -> None:
        """One line. `origin` is our own host, `request_origin` the page that asked, if it said."""
        self._log.info(
            _SCHEMA,
            version=_VERSION,
            provider=provider_name,
            spec=spec,
            ref=record.revision or "",
            status="success" if record.ok else "failure",
            build_token=False,
            origin=origin,
            request_origin=request_origin,
            **({"failure": record.failure.value} if record.failure else {}),
        )

    def close(self) -> None:
        self._handler.close()


class LaunchRecords:
    """Sends launch records to the controller in batches."""

    def __init__(self, controller: httpx.AsyncClient) -> None:
        self._controller = controller
        self._waiting: deque[LaunchRecord] = deque(maxlen=_BUFFER)
        self._news = asyncio.Event()

    def add(self, record: LaunchRecord) -> None:
        self._waiting.append(record)
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        pause = _PAUSE
        while True:
            await self._news.wait()
            # Launches come in bunches; one request then carries them all.
            await asyncio.sleep(pause)
            pause = _PAUSE if await self.flush() else min(pause * 2, _LONGEST_PAUSE)

    async def flush(self) -> bool:
        """Send what waits. False when the controller did not take it; it stays."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                body = [record.model_dump(mode="json") for record in batch]
                response = await self._controller.post("/api/launches", json=body, timeout=10)
            except httpx.HTTPError:
                self._waiting.extendleft(reversed(batch))
                return False
            except BaseException:
                # Cancelled in the middle: whether it was taken is not known, and twice is better than lost.
                self._waiting.extendleft(reversed(batch))
                raise
            if response.status_code >= 500:
                self._waiting.extendleft(reversed(batch))
                return False
            if response.is_error:
                log.error("launches.refused", status=response.status_code, lost=len(batch))
        self._news.clear()
        return True
