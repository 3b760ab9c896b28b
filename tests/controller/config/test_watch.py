"""Hot reload: a file that changes is followed, and an invalid one never replaces the last good one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from prebinder.config import Configuration, LiveConfiguration, load, watch
from tests.support.controller import until


def replace(path: Path, text: str) -> None:
    """As editors do: write another file and put it in place."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_an_invalid_file_keeps_the_last_good_one_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "prebinder.yaml"
    path.write_text("site: {title: One}")
    live = LiveConfiguration(load(path), path)
    first = live.current
    assert not live.reload(), "nothing changed"
    assert live.current is first, "also for whoever is applying it just now"
    path.write_text("site: {titel: Two}")
    assert live.reload()
    assert live.current.site.title == "One"
    assert "prebinder.yaml:1: site.titel: unknown key" in (live.problem or "")
    assert not live.reload(), "the same problem is no news"
    path.unlink()
    assert live.reload()
    assert "cannot be read" in (live.problem or "")
    path.write_text("site: {title: Two}")
    assert live.reload()
    assert (live.current.site.title, live.problem) == ("Two", None)


def test_what_needs_a_restart_is_named_until_it_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "prebinder.yaml"
    path.write_text("site: {title: One}")
    live = LiveConfiguration(load(path), path)
    path.write_text("site: {title: Two}\nbuilder: {kind: kubernetes}\nlimits: {parallel: 3}")
    with structlog.testing.capture_logs() as said:
        assert live.reload()
    assert live.current.limits.parallel == 3
    assert [(e["event"], e.get("keys")) for e in said if e["log_level"] == "warning"] == [
        ("configuration.restart_needed", ["builder.kind", "site"])
    ]
    path.write_text("site: {title: One}\nlimits: {parallel: 2}")
    with structlog.testing.capture_logs() as said:
        assert live.reload()
    assert [e["event"] for e in said] == ["configuration.loaded"]


async def test_changes_of_the_file_are_told_until_we_stop(tmp_path: Path) -> None:
    path = tmp_path / "prebinder.yaml"
    path.write_text("site: {title: One}")
    live = LiveConfiguration(load(path), path)
    stop = asyncio.Event()
    told: list[str] = []
    following = asyncio.create_task(live.follow(lambda: told.append(live.problem or live.current.site.title), stop))

    # The watch begins a moment after the task does: write until it is seen.
    async with asyncio.timeout(60):
        while not told:
            replace(path, "site: {title: Two}")
            await asyncio.sleep(0.1)
    assert told[0] == "Two"
    replace(path, "site: [")
    await until(lambda: "not valid YAML" in told[-1])
    replace(path, "site: {title: Three}")
    await until(lambda: told[-1] == "Three")
    stop.set()
    await asyncio.wait_for(following, 20)


@asynccontextmanager
async def followed(live: LiveConfiguration) -> AsyncIterator[list[str]]:
    """What is told while the block runs, the newest last."""
    stop = asyncio.Event()
    told: list[str] = []
    following = asyncio.create_task(live.follow(lambda: told.append(live.problem or live.current.site.title), stop))
    try:
        yield told
    finally:
        stop.set()
        await asyncio.wait_for(following, 20)


async def test_a_change_before_the_watch_began_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prebinder.yaml"
    path.write_text("site: {title: One}")
    live = LiveConfiguration(load(path), path)
    replace(path, "site: {title: Two}")
    async with followed(live) as told:
        await until(lambda: told == ["Two"])


async def test_a_folder_that_is_replaced_is_followed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.1)
    path = tmp_path / "etc" / "prebinder.yaml"
    path.parent.mkdir()
    path.write_text("site: {title: One}")
    live = LiveConfiguration(load(path), path)
    replace(path, "site: {title: Two}")
    async with followed(live) as told:
        await until(lambda: told == ["Two"])
        path.parent.rename(tmp_path / "old")
        await until(lambda: "cannot be read" in told[-1])
        path.parent.mkdir()
        for title in ("Three", "Four"):
            replace(path, f"site: {{title: {title}}}")
            await until(lambda title=title: told[-1] == title)


async def test_without_a_watch_of_the_system_the_file_is_followed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up(*paths: Path, **options: Any) -> AsyncGenerator[Any]:
        if not options["force_polling"]:
            raise WatchfilesRustInternalError("Too many open files (os error 24)")
        return awatch(*paths, **options)

    monkeypatch.setattr(watch, "awatch", used_up)
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.1)
    path = tmp_path / "prebinder.yaml"
    path.write_text("site: {title: One}")
    async with followed(LiveConfiguration(load(path), path)) as told:
        for title in ("Two", "Three"):
            replace(path, f"site: {{title: {title}}}")
            await until(lambda title=title: told[-1:] == [title])


async def test_a_change_of_which_the_watch_says_nothing_is_seen_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.1)
    other, path = tmp_path / "elsewhere" / "prebinder.yaml", tmp_path / "prebinder.yaml"
    other.parent.mkdir()
    other.write_text("site: {title: One}")
    path.symlink_to(other)
    async with followed(LiveConfiguration(load(path), path)) as told:
        for title in ("Two", "Three"):
            replace(other, f"site: {{title: {title}}}")
            await until(lambda title=title: told[-1:] == [title])


async def test_without_a_file_nothing_is_followed() -> None:
    stop = asyncio.Event()
    live = LiveConfiguration(Configuration())
    following = asyncio.create_task(live.follow(lambda: None, stop))
    assert not live.reload()
    stop.set()
    await asyncio.wait_for(following, 5)
