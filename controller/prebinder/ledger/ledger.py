"""The ledger: what the controller remembers, in SQLite on one machine or in PostgreSQL.

Guarantees:
- Each method is one transaction: after a crash the ledger holds all of it or nothing.
- Writing the same thing twice is the same as once, so that a caller may repeat after a crash.
- Only values come out; times are aware and in UTC.
- Nobody waits for ever for a database that says nothing: that is a LedgerError after a while.

Losing the ledger loses history, never a working link: the registry is the truth about images.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Row, Table, delete, event, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from prebinder.ledger.migrate import LedgerError, upgrade
from prebinder.ledger.records import BuildEntry, RefMemory, RepositoryMemory, RevisionMemory, Wish
from prebinder.ledger.tables import builds, deliveries, launches, refs, repositories, revisions
from prebinder.model.catalogue import RefKind
from prebinder.model.events import BuildRecord, BuildState
from prebinder.model.messages import LaunchRecord

_BUSY_SECONDS = 30
_POSTGRESQL_SECONDS = {"timeout": 10, "command_timeout": 30}
"""For connecting and for each statement, as asyncpg names them: a server that is lost without a word says nothing."""
_MIGRATION_SECONDS = 120
_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON")


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of a ledger in a file."""
    return f"sqlite+aiosqlite:///{path.absolute()}"


class Ledger:
    """Open one with `Ledger.open`; close it with `aclose`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        # SQLite has one writer at a time: queueing here is fairer and cheaper than its busy loop. On PostgreSQL, too,
        # what is written of one build or repository must arrive in order.
        self._writer = asyncio.Lock()
        self._turn_seconds = None if engine.dialect.name == "sqlite" else _POSTGRESQL_SECONDS["command_timeout"]

    @classmethod
    async def open(cls, where: str | Path) -> Self:
        """Open the ledger at a path (SQLite) or SQLAlchemy URL, making or migrating it first. Raises LedgerError."""
        shown = str(where)
        try:
            url = make_url(sqlite_url(where) if isinstance(where, Path) else where)
            shown = url.render_as_string(hide_password=True)
            if url.drivername == "sqlite":
                url = url.set(drivername="sqlite+aiosqlite")
            if url.drivername in ("postgresql", "postgres"):
                url = url.set(drivername="postgresql+asyncpg")
            if url.get_backend_name() == "sqlite" and url.database:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_async_engine(url, **_engine_options(url))
            limits = _limits(url)
            if limits:
                limits["command_timeout"] = _MIGRATION_SECONDS
            await asyncio.to_thread(upgrade, url.render_as_string(hide_password=False), connect_args=limits)
        except ArgumentError:
            raise LedgerError(
                "ledger.url names no database that can be used here: write for example "
                "sqlite:////var/lib/prebinder/ledger.sqlite or postgresql://user@host/prebinder."
            ) from None
        except ModuleNotFoundError as error:
            raise LedgerError(f"The ledger {shown} needs the Python package {error.name}; install it.") from None
        except (SQLAlchemyError, OSError, sqlite3.Error) as error:
            raise LedgerError(f"The ledger {shown} cannot be opened: {_cause(error)}.") from None
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return cls(engine)

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def health(self) -> None:
        """Raises LedgerError when the database does not answer."""
        async with self._reading() as connection:
            await connection.execute(select(func.count()).select_from(repositories))

    # Repositories, refs and revisions

    async def repositories(self) -> dict[str, RepositoryMemory]:
        """Everything remembered of every repository."""
        async with self._reading() as connection:
            rows = (await connection.execute(select(repositories))).all()
            ref_rows = (await connection.execute(select(refs))).all()
            revision_rows = (await connection.execute(select(revisions).order_by(revisions.c.position))).all()
        have: dict[str, tuple[list[RefMemory], dict[str, RevisionMemory]]] = {r.repository: ([], {}) for r in rows}
        for row in ref_rows:
            have[row.repository][0].append(RefMemory(RefKind(row.kind), row.name, row.revision, row.covered))
        for row in revision_rows:
            have[row.repository][1][row.revision] = RevisionMemory(
                row.revision, row.position, row.first_seen, row.summary, row.via, row.image, row.image_since
            )
        return {
            row.repository: RepositoryMemory(
                row.repository,
                row.default_branch,
                row.looked_at,
                row.webhook_at,
                row.webhook_missed,
                row.problem,
                tuple(have[row.repository][0]),
                have[row.repository][1],
            )
            for row in rows
        }

    async def remember(
        self, memory: RepositoryMemory, *, refs_changed: bool = True, revised: Iterable[RevisionMemory] = ()
    ) -> None:
        """Write the repository itself, all its refs when they changed, and the revisions that are new or changed."""
        async with self._writing() as connection:
            await self._put(
                connection,
                repositories,
                {
                    "repository": memory.repository,
                    "default_branch": memory.default_branch,
                    "looked_at": memory.looked_at,
                    "webhook_at": memory.webhook_at,
                    "webhook_missed": memory.webhook_missed,
                    "problem": memory.problem,
                },
            )
            if refs_changed:
                await connection.execute(delete(refs).where(refs.c.repository == memory.repository))
                if memory.refs:
                    await connection.execute(insert(refs), [_ref_row(memory.repository, ref) for ref in memory.refs])
            for revision in revised:
                await self._put(connection, revisions, _revision_row(memory.repository, revision))

    async def forget(self, repository: str, revisions_gone: Sequence[str]) -> None:
        """Drop revisions that nothing shows any more."""
        async with self._writing() as connection:
            for start in range(0, len(revisions_gone), 500):
                await connection.execute(
                    delete(revisions).where(
                        revisions.c.repository == repository,
                        revisions.c.revision.in_(revisions_gone[start : start + 500]),
                    )
                )

    # Builds

    async def put_build(self, entry: BuildEntry) -> None:
        """Write a build, new or changed."""
        async with self._writing() as connection:
            await self._put(connection, builds, _build_row(entry))

    async def unfinished(self) -> list[BuildEntry]:
        """The builds that were queued or running, oldest first."""
        states = [s.value for s in BuildState if not s.finished]
        statement = select(builds).where(builds.c.state.in_(states)).order_by(builds.c.queued_at, builds.c.id)
        async with self._reading() as connection:
            return [_build(row) for row in (await connection.execute(statement)).all()]

    async def latest_builds(self) -> dict[str, BuildEntry]:
        """The newest build of each image."""
        newest = select(builds.c.image, func.max(builds.c.queued_at).label("at")).group_by(builds.c.image).subquery()
        statement = (
            select(builds)
            .join(newest, (builds.c.image == newest.c.image) & (builds.c.queued_at == newest.c.at))
            .order_by(builds.c.id)
        )
        async with self._reading() as connection:
            return {row.image: _build(row) for row in (await connection.execute(statement)).all()}

    async def failures(self, image: str) -> int:
        """How many builds of the image have failed since the last that did not."""
        success = select(func.max(builds.c.queued_at)).where(
            builds.c.image == image, builds.c.state == BuildState.READY.value
        )
        statement = select(builds.c.queued_at).where(builds.c.image == image, builds.c.state == BuildState.FAILED.value)
        async with self._reading() as connection:
            last = (await connection.execute(success)).scalar()
            if last is not None:
                statement = statement.where(builds.c.queued_at > last)
            return len((await connection.execute(statement)).all())

    async def builds(
        self, repository: str | None = None, state: BuildState | None = None, limit: int = 50
    ) -> list[BuildRecord]:
        """The newest builds, newest first."""
        statement = select(builds).order_by(builds.c.queued_at.desc(), builds.c.id).limit(limit)
        if repository is not None:
            statement = statement.where(builds.c.repository == repository)
        if state is not None:
            statement = statement.where(builds.c.state == state.value)
        async with self._reading() as connection:
            return [_build(row).record for row in (await connection.execute(statement)).all()]

    async def build(self, beginning: str) -> BuildRecord | None:
        """The build whose id begins so; None when there is none, or more than one."""
        after = beginning[:-1] + chr(ord(beginning[-1]) + 1) if beginning else ""
        statement = select(builds).where(builds.c.id >= beginning, builds.c.id < after).order_by(builds.c.id).limit(2)
        async with self._reading() as connection:
            rows = (await connection.execute(statement)).all()
        if len(rows) == 1 or (rows and rows[0].id == beginning):
            return _build(rows[0]).record
        return None

    # What people and Git hosts did

    async def record_launches(self, records: Sequence[LaunchRecord]) -> None:
        if not records:
            return
        async with self._writing() as connection:
            await connection.execute(insert(launches), [r.model_dump(mode="python") for r in records])

    async def launch_count(self) -> int:
        async with self._reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(launches))).scalar_one())

    async def clicked_since(self, at: datetime, limit: int = 1000) -> dict[tuple[str, str], datetime]:
        """Repository and ref of the links that were clicked since then, and when last; the newest first."""
        last = func.max(launches.c.at).label("last")
        statement = (
            select(launches.c.repository, launches.c.ref, last)
            .where(launches.c.at >= at)
            .group_by(launches.c.repository, launches.c.ref)
            .order_by(last.desc())
            .limit(limit)
        )
        async with self._reading() as connection:
            return {(row.repository, row.ref): row.last for row in await connection.execute(statement)}

    async def first_delivery(self, provider: str, delivery: str, at: datetime) -> bool:
        """Note a webhook's delivery; False when it was noted before."""
        async with self._writing() as connection:
            statement = (
                self._insert(deliveries)
                .values(provider=provider, delivery=delivery[:255], at=at)
                .on_conflict_do_nothing()
                .returning(deliveries.c.delivery)
            )
            return (await connection.execute(statement)).first() is not None

    async def forget_deliveries(self, before: datetime) -> None:
        async with self._writing() as connection:
            await connection.execute(delete(deliveries).where(deliveries.c.at < before))

    # How

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise LedgerError(f"The ledger does not answer: {_cause(error)}.") from error

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._turn(), self._engine.connect() as connection:
                connection = await connection.execution_options(prebinder_writes=True)
                async with connection.begin():
                    yield connection
        except (SQLAlchemyError, OSError) as error:
            raise LedgerError(f"The ledger cannot be written: {_cause(error)}.") from error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Write when those before us have written; behind one that gets no answer, not for long."""
        async with asyncio.timeout(self._turn_seconds):
            await self._writer.acquire()
        try:
            yield
        finally:
            self._writer.release()

    async def _put(self, connection: AsyncConnection, table: Table, row: Mapping[str, Any]) -> None:
        """Insert, or replace the row with the same key."""
        keys = [column.name for column in table.primary_key]
        statement = self._insert(table).values(**row)
        statement = statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in row if name not in keys}
        )
        await connection.execute(statement)


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_SECONDS}, "pool_size": 4}
    return {"connect_args": _limits(url), "pool_pre_ping": True, "pool_size": 5, "pool_timeout": _BUSY_SECONDS}


def _limits(url: URL) -> dict[str, Any]:
    return dict(_POSTGRESQL_SECONDS) if url.drivername == "postgresql+asyncpg" else {}


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # SQLAlchemy emits BEGIN itself (below), as its documentation of SQLite's transactions describes.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another one wrote in between;
    # IMMEDIATE waits its turn instead.
    writes = connection.get_execution_options().get("prebinder_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    if isinstance(original, TimeoutError) and not str(original):
        return "no answer in time"
    return str(original).rstrip(".") or type(original).__name__


def _ref_row(repository: str, ref: RefMemory) -> dict[str, Any]:
    return {
        "repository": repository,
        "kind": ref.kind.value,
        "name": ref.name,
        "revision": ref.revision,
        "covered": ref.covered,
    }


def _revision_row(repository: str, revision: RevisionMemory) -> dict[str, Any]:
    return {
        "repository": repository,
        "revision": revision.revision,
        "position": revision.position,
        "first_seen": revision.first_seen,
        "summary": revision.summary,
        "via": revision.via,
        "image": revision.image,
        "image_since": revision.image_since,
    }


def _build_row(entry: BuildEntry) -> dict[str, Any]:
    return {
        **entry.record.model_dump(mode="python"),
        "wanted": entry.wish.value,
        "recipe": entry.recipe,
        "superseded": entry.superseded,
    }


def _build(row: Row[Any]) -> BuildEntry:
    fields = row._mapping
    record = BuildRecord.model_validate({name: fields[name] for name in BuildRecord.model_fields})
    return BuildEntry(record, Wish(row.wanted), row.recipe, row.superseded)


__all__ = ["Ledger", "LedgerError", "sqlite_url"]
