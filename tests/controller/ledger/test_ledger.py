"""The ledger on a real SQLite file and a real PostgreSQL: what goes in comes out, older databases are brought up to
date, newer refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from prebinder.ledger import BuildEntry, Ledger, LedgerError, RepositoryMemory, RevisionMemory, Wish
from prebinder.ledger import ledger as ledger_module
from prebinder.ledger.ledger import sqlite_url
from prebinder.ledger.migrate import upgrade
from prebinder.ledger.records import RefMemory
from prebinder.ledger.tables import metadata
from prebinder.model.catalogue import RefKind
from prebinder.model.events import BuildRecord, BuildState, Priority
from prebinder.model.failure import FailureKind
from prebinder.model.messages import LaunchRecord
from tests.support.postgresql import Postgresql, postgresql
from tests.support.tcp_gate import gate

__all__ = ["postgresql"]

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
COURSE = "git/https%3A%2F%2Fexample.org%2Fcourse"


@pytest.fixture(params=["sqlite", "postgresql"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    """One of each kind; what holds for the one holds for the other."""
    if request.param == "sqlite":
        ledger = await Ledger.open(tmp_path / "ledger.sqlite")
    else:
        ledger = await Ledger.open(request.getfixturevalue("postgresql").database())
    yield ledger
    await ledger.aclose()


def record(build_id: str, minutes: int = 0, **fields: Any) -> BuildRecord:
    values: dict[str, Any] = {
        "id": build_id,
        "repository": COURSE,
        "ref": "main",
        "revision": "a" * 40,
        "image": "registry/course:" + "a" * 40,
        "state": BuildState.QUEUED,
        "priority": Priority.NORMAL,
        "attempt": 1,
        "queued_at": NOW + timedelta(minutes=minutes),
    }
    return BuildRecord(**{**values, **fields})


def entry(build_id: str, minutes: int = 0, **fields: Any) -> BuildEntry:
    return BuildEntry(record(build_id, minutes, **fields), Wish.TIP, "recipe")


async def test_a_repository_comes_out_as_it_went_in(ledger: Ledger) -> None:
    revisions = {
        "a" * 40: RevisionMemory("a" * 40, 2**33, NOW, "Größe 🎈", None, "image@sha256:1", NOW),
        "b" * 40: RevisionMemory("b" * 40, 1, NOW, None, "main"),
    }
    refs = (
        RefMemory(RefKind.BRANCH, "main", "a" * 40, "b" * 40),
        RefMemory(RefKind.TAG, "main", "b" * 40, None),
    )
    memory = RepositoryMemory(COURSE, "main", NOW, NOW, True, "A problem.", refs, revisions)
    for _ in range(2):  # the same twice is the same as once
        await ledger.remember(memory, revised=revisions.values())
        assert await ledger.repositories() == {COURSE: memory}
    moved = RefMemory(RefKind.BRANCH, "main", "b" * 40, "b" * 40)
    await ledger.remember(RepositoryMemory(COURSE, refs=(moved,)))
    await ledger.forget(COURSE, ["a" * 40, "not there"])
    after = (await ledger.repositories())[COURSE]
    assert (after.refs, list(after.revisions), after.problem) == ((moved,), ["b" * 40], None)


async def test_times_come_out_in_utc_and_times_without_a_zone_are_refused(ledger: Ledger) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    await ledger.remember(RepositoryMemory(COURSE, looked_at=elsewhere))
    looked = (await ledger.repositories())[COURSE].looked_at
    assert looked == NOW
    assert looked is not None
    assert looked.tzinfo is UTC
    with pytest.raises(LedgerError, match="without a zone"):
        await ledger.remember(RepositoryMemory(COURSE, looked_at=NOW.replace(tzinfo=None)))


async def test_a_build_goes_through_its_states(ledger: Ledger) -> None:
    await ledger.put_build(entry("abc123"))
    assert await ledger.unfinished() == [entry("abc123")]
    failed = entry(
        "abc123",
        state=BuildState.FAILED,
        attempt=4,
        started_at=NOW,
        finished_at=NOW,
        failure=FailureKind.ENGINE,
        message="Podman is away.",
    )
    await ledger.put_build(failed)
    assert await ledger.unfinished() == []
    assert await ledger.build("abc") == failed.record
    assert await ledger.latest_builds() == {failed.record.image: failed}


async def test_the_newest_build_of_each_image_and_failures_in_a_row(ledger: Ledger) -> None:
    image = record("x").image
    states = [BuildState.FAILED, BuildState.READY, BuildState.FAILED, BuildState.FAILED]
    for minute, state in enumerate(states):
        await ledger.put_build(entry(f"b{minute}", minute, state=state))
    await ledger.put_build(entry("other", 9, image="registry/other:1"))
    assert {i: e.record.id for i, e in (await ledger.latest_builds()).items()} == {
        image: "b3",
        "registry/other:1": "other",
    }
    assert await ledger.failures(image) == 2
    assert await ledger.failures("registry/other:1") == 0


async def test_builds_are_listed_newest_first_and_filtered(ledger: Ledger) -> None:
    for minute in range(5):
        await ledger.put_build(entry(f"b{minute}", minute, state=BuildState.READY if minute % 2 else BuildState.FAILED))
    await ledger.put_build(entry("other", repository="gh/a/b"))
    assert [b.id for b in await ledger.builds(COURSE, limit=3)] == ["b4", "b3", "b2"]
    assert [b.id for b in await ledger.builds(state=BuildState.READY)] == ["b3", "b1"]
    assert await ledger.builds("gh/no/body") == []


async def test_a_build_is_found_by_a_unique_beginning_alone(ledger: Ledger) -> None:
    for build_id in ("abc1", "abc2", "ab", "z"):
        await ledger.put_build(entry(build_id))
    found = {key: (b := await ledger.build(key)) and b.id for key in ("abc1", "abc", "ab", "a", "z", "y", "", "%", "_")}
    assert found == {
        "abc1": "abc1",
        "abc": None,
        "ab": "ab",
        "a": None,
        "z": "z",
        "y": None,
        "": None,
        "%": None,
        "_": None,
    }


async def test_a_delivery_is_first_once(ledger: Ledger) -> None:
    assert await ledger.first_delivery("git", "1", NOW)
    assert not await ledger.first_delivery("git", "1", NOW)
    assert await ledger.first_delivery("github", "1", NOW)
    await ledger.forget_deliveries(NOW + timedelta(seconds=1))
    assert await ledger.first_delivery("git", "1", NOW)


async def test_launches_are_kept(ledger: Ledger) -> None:
    launch = LaunchRecord(
        at=NOW, provider="gh", repository="gh/a/b", ref="main", revision=None, image=None, ok=False,
        failure=FailureKind.HUB, seconds=1.5,
    )  # fmt: skip
    await ledger.record_launches([launch, launch])
    await ledger.record_launches([])
    assert await ledger.launch_count() == 2


async def test_what_was_clicked_lately_is_told_once_with_its_latest_time(ledger: Ledger) -> None:
    def launch(ref: str, minutes: int) -> LaunchRecord:
        return LaunchRecord(
            at=NOW - timedelta(minutes=minutes), provider="gh", repository="gh/a/b", ref=ref, revision=None,
            image=None, ok=True, seconds=1.5,
        )  # fmt: skip

    await ledger.record_launches([launch("main", 30), launch("main", 5), launch("dev", 2), launch("old", 120)])
    assert await ledger.clicked_since(NOW - timedelta(hours=1)) == {
        ("gh/a/b", "dev"): NOW - timedelta(minutes=2),
        ("gh/a/b", "main"): NOW - timedelta(minutes=5),
    }


async def test_many_writers_and_readers_at_once_do_not_get_in_each_others_way(ledger: Ledger) -> None:
    async def one(number: int) -> None:
        await ledger.put_build(entry(f"b{number}", number))
        await ledger.builds()
        await ledger.remember(RepositoryMemory(f"gh/a/{number}"))

    await asyncio.gather(*(one(n) for n in range(60)))
    assert len(await ledger.unfinished()) == 60


async def test_what_is_written_survives_and_the_file_is_tuned(tmp_path: Path) -> None:
    for number in range(2):
        ledger = await Ledger.open(tmp_path / "deep" / "er" / "ledger.sqlite")
        assert len(await ledger.unfinished()) == number
        await ledger.put_build(entry(f"b{number}"))
        async with ledger._engine.connect() as connection:
            pragmas = {
                name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert pragmas == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30000}
        await ledger.aclose()


async def test_a_ledger_of_an_older_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await asyncio.to_thread(upgrade, sqlite_url(path), "0001")
    with sqlite3.connect(path) as database:
        database.execute("insert into repositories (repository, webhook_missed) values ('gh/a/b', 0)")
        assert not database.execute("select name from sqlite_master where name = 'launches'").fetchall()
    ledger = await Ledger.open(path)
    assert list(await ledger.repositories()) == ["gh/a/b"]
    assert await ledger.launch_count() == 0
    await ledger.aclose()


async def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await (await Ledger.open(path)).aclose()
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(LedgerError, match=r"newer Prebinder.*9999"):
        await Ledger.open(path)
    with sqlite3.connect(path) as database:
        assert database.execute("select version_num from alembic_version").fetchall() == [("9999",)]


def test_the_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    upgrade(sqlite_url(path))
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("not a url: a hidden-word", r"ledger\.url names no database"),
        ("mysql+nothing://u:hidden-word@host/name", r"ledger\.url names no database"),
        ("sqlite:////proc/nowhere/ledger.sqlite", "cannot be opened"),
    ],
)
async def test_a_ledger_that_cannot_be_opened_says_so(where: str, said: str) -> None:
    with pytest.raises(LedgerError, match=said) as caught:
        await Ledger.open(where)
    assert "hidden-word" not in str(caught.value)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("This is somebody's letter. " * 100)
    with pytest.raises(LedgerError, match="cannot be opened"):
        await Ledger.open(path)
    assert path.read_text().startswith("This is somebody's letter")


async def test_a_password_never_stands_in_a_message() -> None:
    with pytest.raises(LedgerError) as caught:
        await Ledger.open("postgresql://user:hidden-word@127.0.0.1:1/name")
    assert "hidden-word" not in str(caught.value)


async def test_nobody_waits_for_ever_for_a_database_that_says_nothing(
    postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_POSTGRESQL_SECONDS", {"timeout": 1, "command_timeout": 1})
    monkeypatch.setattr(ledger_module, "_MIGRATION_SECONDS", 1)
    server = make_url(postgresql.database())
    async with gate(f"{server.query['host']}/.s.PGSQL.5432", 0) as way:
        where = f"postgresql://postgres@127.0.0.1:{way.port}/{server.database}"
        ledger = await Ledger.open(where)
        await ledger.put_build(entry("b0"))
        way.hold()
        async with asyncio.timeout(30):  # one after another, the writers alone would take longer
            asked = [*(ledger.put_build(entry(f"b{n}")) for n in range(1, 40)), ledger.health(), Ledger.open(where)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {LedgerError}
        assert {str(answer).partition(": ")[2] for answer in answers[:-1]} == {"no answer in time."}
        way.open()
        await ledger.put_build(entry("b0", attempt=2))
        assert [build.attempt for build in await ledger.builds()] == [2]
        await ledger.aclose()
