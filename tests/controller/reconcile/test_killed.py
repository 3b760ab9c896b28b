"""SIGKILL in mid-build: the next controller on the same folder finishes the build, and the ledger is whole."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

from prebinder.hosts.git import GitHost
from prebinder.model.events import BuildState
from prebinder.model.spec import Provider
from tests.support.controller import started, until
from tests.support.git_server import GitServer

ROOT = Path(__file__).parents[3]


async def test_a_killed_controllers_build_is_finished_by_the_next(tmp_path: Path, git_server: GitServer) -> None:
    course = git_server.create("course")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.controller.reconcile.killed_controller",
        str(tmp_path),
        course.url,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()).strip() != f"building {course.head()}".encode():
                assert line, "the controller ended by itself"
        log = await until(lambda: next((tmp_path / "builds").glob("*.jsonl"), None))
        await until(lambda: log.stat().st_size > 5000)
    finally:
        process.kill()
        await process.wait()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select state from builds").fetchall() == [("running",)]

    async with started(tmp_path, [{"git": course.url}], {Provider.GIT: GitHost(tmp_path / "cache")}) as it:
        record = await it.ended(log.stem)
        assert (record.state, record.attempt) == (BuildState.READY, 2)
        events = await it.events(log.stem)
        assert [e.seq for e in events] == list(range(1, len(events) + 1)), "the torn log goes on where it was whole"
        assert [e.terminal for e in events].count(True) == 1
        await until(lambda: it.is_state(course.head(), "ready"))
        assert it.builder.revisions == [course.head()]
        assert len(await it.controller.builds()) == 1
