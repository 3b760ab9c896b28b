"""Commits between two revisions, from servers that can do much and from servers that can do little."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.hosts.base import Commit
from prebinder.hosts.git import GitHost
from prebinder.model.failure import HostUnavailable
from prebinder.model.spec import git_url
from prebinder.onemachine.git_http import GitHttp
from tests.support.bad_git_servers import silent_server
from tests.support.git_server import GitRepository, GitServer, git, serve


@pytest.fixture
def host(tmp_path: Path) -> GitHost:
    return GitHost(tmp_path / "scratch", timeout=20)


def without_protocol_2(app: ASGIApp) -> ASGIApp:
    """An old server: it gives the commits that refs stand at, and no others by their ids."""

    async def old(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope.get("headers", []) if name != b"git-protocol"]
        await app({**scope, "headers": headers}, receive, send)

    return old


@pytest.fixture(params=["knows filters", "knows no filters", "gives only tips"])
def course(git_server: GitServer, request: pytest.FixtureRequest) -> Iterator[GitRepository]:
    course = git_server.create()
    if request.param == "knows filters":
        git("config", "uploadpack.allowFilter", "true", cwd=course.path)
    if request.param != "gives only tips":
        yield course
        return
    with serve(without_protocol_2(GitHttp(git_server.folder))) as url:
        yield dataclasses.replace(course, url=f"{url}/course.git")


def push_many(course: GitRepository, count: int) -> list[str]:
    """Push `count` commits at once; their ids, newest first."""
    ids = [course.commit({"README.md": f"{number}\n"}, f"Commit {number}") for number in range(count)]
    git("push", "--quiet", "origin", "main", cwd=course.work)
    return ids[::-1]


@pytest.mark.parametrize("count", [1, 3, 20])
async def test_every_commit_of_a_push_is_found_newest_first(course: GitRepository, host: GitHost, count: int) -> None:
    old = course.head()
    ids = push_many(course, count)
    commits = await host.commits_between(course.repository, old, ids[0], 50)
    assert [c.revision for c in commits] == ids
    assert commits[0].summary == f"Commit {count - 1}"


async def test_of_many_the_newest_are_told(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    old = course.head()
    ids = push_many(course, 12)
    assert [c.revision for c in await host.commits_between(course.repository, old, ids[0], 10)] == ids[:10]


async def test_without_an_old_commit_there_is_just_the_new(course: GitRepository, host: GitHost) -> None:
    ids = push_many(course, 3)
    assert await host.commits_between(course.repository, None, ids[0], 50) == (Commit(ids[0], "Commit 2"),)
    assert await host.commits_between(course.repository, ids[0], ids[0], 50) == (Commit(ids[0], "Commit 2"),)


async def test_when_the_old_commit_is_gone_there_is_just_the_new(course: GitRepository, host: GitHost) -> None:
    ids = push_many(course, 3)
    assert await host.commits_between(course.repository, "f" * 40, ids[0], 50) == (Commit(ids[0], "Commit 2"),)


async def test_a_merge_brings_the_commits_of_both_sides(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    old = course.head()
    side = course.commit({"side": "1"}, "Side", branch="side")
    trunk = course.commit({"trunk": "1"}, "Trunk", branch="main")
    git("merge", "--quiet", "--no-ff", "-m", "Merge", "side", cwd=course.work)
    git("push", "--quiet", "origin", "main", cwd=course.work)
    commits = await host.commits_between(course.repository, old, course.head(), 50)
    assert {c.revision for c in commits} == {course.head(), side, trunk}
    assert commits[0].summary == "Merge"


async def test_summaries_are_one_printable_line(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    new = course.push({"a": "b"}, "Evil \x1b[31mred\x07\tand " + "long " * 100 + "\n\nBody")
    (commit,) = await host.commits_between(course.repository, None, new, 5)
    assert commit.summary.startswith("Evil [31mred and long")
    assert commit.summary.isprintable()
    assert len(commit.summary) <= 200


async def test_a_summary_that_is_not_utf8_is_shown_as_well_as_it_can_be(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    tree = git("rev-parse", "HEAD^{tree}", cwd=course.path)
    who = b"A <a@example.org> 1790000000 +0000"
    raw = b"tree %b\nauthor %b\ncommitter %b\n\ncaf\xe9 au lait\n" % (tree.encode(), who, who)
    new = git("hash-object", "-t", "commit", "-w", "--stdin", cwd=course.path, stdin=raw)
    git("update-ref", "refs/heads/latin", new, cwd=course.path)
    (commit,) = await host.commits_between(course.repository, None, new, 5)
    assert commit.summary.endswith("au lait")


async def test_nothing_is_left_behind(git_server: GitServer, host: GitHost, tmp_path: Path) -> None:
    course = git_server.create()
    await host.commits_between(course.repository, None, course.head(), 5)
    with pytest.raises(HostUnavailable):
        await host.commits_between(git_url("http://127.0.0.1:1/x.git"), None, "a" * 40, 5)
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    host = GitHost(tmp_path / "scratch", timeout=0.2)
    with silent_server() as url, pytest.raises(HostUnavailable):
        await host.commits_between(git_url(f"{url}/x.git"), "a" * 40, "b" * 40, 5)


@pytest.mark.parametrize("bad", ["main", "--output=owned", "a" * 39, ""])
async def test_only_full_commit_ids_are_asked_for(host: GitHost, bad: str) -> None:
    with pytest.raises(ValueError, match="full commit ids"):
        await host.commits_between(git_url("http://127.0.0.1:1/x.git"), None, bad, 5)


async def test_what_a_killed_controller_left_is_cleared_away(
    git_server: GitServer, host: GitHost, tmp_path: Path
) -> None:
    course = git_server.create()
    old, fresh = tmp_path / "scratch" / "history-old", tmp_path / "scratch" / "history-fresh"
    old.mkdir(parents=True)
    fresh.mkdir()
    os.utime(old, (0, 0))
    await host.commits_between(course.repository, None, course.head(), 5)
    assert list((tmp_path / "scratch").iterdir()) == [fresh]
