"""A way to a server that a test can close: for what happens when a network or a server is away.

async with gate("api.example.org", 6443) as way:
    way.port            # connect here
    way.cut()           # every connection is reset, new ones are refused
    way.hold()          # nothing passes any more, and nobody is told
    way.open()          # as before

A host that begins with a slash is the path of a Unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_CHUNK = 64 * 1024


class Gate:
    """Passes bytes on, as long as it is open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        """How many there were so far."""

    def cut(self) -> None:
        self._refusing = True
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        self._passing.clear()

    def open(self) -> None:
        self._refusing = False
        self._passing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        host, port = self._target
        unix = host.startswith("/")
        there, back = await (asyncio.open_unix_connection(host) if unix else asyncio.open_connection(host, port))
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        finally:
            for end in (writer, back):
                end.transport.abort()
                self._writers.discard(end)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # also "not connected", of an end that is gone already
            while chunk := await reader.read(_CHUNK):
                await self._passing.wait()
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()


@contextlib.asynccontextmanager
async def gate(host: str, port: int) -> AsyncIterator[Gate]:
    """An open gate, as long as the block runs."""
    way = Gate(host, port)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        way._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await way.serve(reader, writer)
        way._tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        way.open()
        way.cut()
        for task in list(way._tasks):
            task.cancel()
        await asyncio.gather(*way._tasks, return_exceptions=True)
