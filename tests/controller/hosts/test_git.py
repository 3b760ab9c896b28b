"""Plain Git against a real server: refs, revisions, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prebinder.hosts.git import GitHost
from prebinder.model.catalogue import RefKind
from prebinder.model.failure import HostError, HostUnavailable, RefNotFound, RepositoryNotFound
from prebinder.model.policy import Ref
from prebinder.model.spec import Provider, Repository, Spec, git_url
from tests.support.bad_git_servers import advertising, answering, flood, redirecting, silent_server
from tests.support.git_server import GitServer, git, serve


@pytest.fixture
def host(tmp_path: Path) -> GitHost:
    return GitHost(tmp_path / "scratch", timeout=20)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


async def test_branches_tags_and_the_default_branch_are_listed(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    first = course.head()
    second = course.push({"a": "b"})
    course.branch("teach/week-1", at=first)
    course.tag("v1.0", at=first, annotated=True)
    refs = await host.list_refs(course.repository)
    assert set(refs.refs) == {
        Ref("main", RefKind.BRANCH, second),
        Ref("teach/week-1", RefKind.BRANCH, first),
        Ref("v1.0", RefKind.TAG, first),
    }
    assert refs.default_branch == "main"
    assert refs.head() == second


@pytest.mark.parametrize(
    ("ref", "names"),
    [
        ("main", "refs/heads/main"),
        ("HEAD", "refs/heads/main"),
        ("master", "refs/heads/main"),
        ("teach/week-1", "refs/heads/teach/week-1"),
        ("v1.0", "refs/tags/v1.0"),
        ("both", "refs/heads/both"),
        ("tags/both", "refs/tags/both"),
        ("pull/7/head", "refs/pull/7/head"),
        ("refs/heads/main", "refs/heads/main"),
    ],
)
async def test_a_ref_resolves_as_people_mean_it(git_server: GitServer, host: GitHost, ref: str, names: str) -> None:
    course = git_server.create()
    first = course.head()
    course.branch("teach/week-1", at=first)
    course.tag("v1.0", at=first, annotated=True)
    course.tag("both", at=first)
    git("update-ref", "refs/pull/7/head", first, cwd=course.path)
    course.push({"b": "c"}, branch="both")
    course.push({"c": "d"}, branch="main")
    assert await host.resolve(Spec(course.repository, ref)) == course.head(names)


async def test_a_branch_called_like_the_end_of_another_is_not_confused(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    course.push({"b": "c"}, branch="refs/heads/trap")
    with pytest.raises(RefNotFound):
        await host.resolve(Spec(course.repository, "trap"))


async def test_a_full_commit_id_needs_no_server(host: GitHost) -> None:
    gone = git_url("http://127.0.0.1:1/course.git")
    assert await host.resolve(Spec(gone, "a" * 40)) == "a" * 40


async def test_a_ref_that_does_not_exist_is_named_in_the_error(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    with pytest.raises(RefNotFound, match='no branch or tag named "teach/wek"'):
        await host.resolve(Spec(course.repository, "teach/wek"))


async def test_an_empty_repository_says_so(git_server: GitServer, host: GitHost) -> None:
    git("init", "--quiet", "--bare", git_server.folder / "empty.git")
    empty = git_url(f"{git_server.url}/empty.git")
    assert (await host.list_refs(empty)).refs == ()
    with pytest.raises(RefNotFound, match="no commits"):
        await host.resolve(Spec(empty, "HEAD"))


async def test_a_repository_that_is_not_there_is_told_from_a_host_that_is_not(
    git_server: GitServer, host: GitHost
) -> None:
    with pytest.raises(RepositoryNotFound, match="no repository at"):
        await host.list_refs(git_url(f"{git_server.url}/none.git"))
    with pytest.raises(HostUnavailable, match="did not answer as a Git server"):
        await host.list_refs(git_url("http://127.0.0.1:1/course.git"))


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_hidden_repository_is_not_found_and_nobody_is_asked_for_a_password(host: GitHost, status: int) -> None:
    with serve(answering(status)) as url, pytest.raises(RepositoryNotFound):
        await host.list_refs(git_url(f"{url}/course.git"))


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_host_in_trouble_is_unavailable(host: GitHost, status: int) -> None:
    with serve(answering(status)) as url, pytest.raises(HostUnavailable):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_a_web_page_is_no_repository(host: GitHost) -> None:
    with serve(answering(200, "<!doctype html>\n<p>Welcome\n")) as url, pytest.raises(HostError):
        await host.list_refs(git_url(f"{url}/course.git"))


@pytest.mark.parametrize(
    "url",
    [
        "--upload-pack=touch owned",
        "-oProxyCommand=touch owned",
        "ext::sh -c touch% owned",
        "ext::touch owned",
        "file:///etc",
        "/etc",
        "fd::17/foo",
        "ssh://-oProxyCommand=touch/owned",
        "ssh://-oProxyCommand=touch@host/owned",
        "https://user:secret@example.org/x.git",
        "http://example.org/x.git\n--upload-pack=touch",
    ],
)
async def test_what_is_no_network_url_never_reaches_git(
    host: GitHost, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # were git or ssh looked for, this would be another error
    trap = Repository(Provider.GIT, url)
    for question in (
        host.list_refs(trap),
        host.resolve(Spec(trap, "main")),
        host.commits_between(trap, None, "a" * 40, 5),
    ):
        with pytest.raises(RepositoryNotFound) as caught:
            await question
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ext::sh -c touch%20owned", "ftp://127.0.0.1/x", "ssh://a/b"])
async def test_a_redirect_leads_to_no_other_kind_of_address(host: GitHost, target: str) -> None:
    with serve(redirecting(target)) as url, pytest.raises(HostError):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_a_redirect_to_itself_ends(host: GitHost) -> None:
    with serve(redirecting("/round")) as url, pytest.raises(HostUnavailable):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_a_renamed_repository_is_found_where_it_moved(git_server: GitServer, host: GitHost) -> None:
    course = git_server.create()
    with serve(redirecting(f"{course.url}/info/refs?service=git-upload-pack")) as url:
        assert await host.resolve(Spec(git_url(f"{url}/old.git"), "main")) == course.head()


async def test_a_server_that_says_nothing_is_given_up_and_git_ends(tmp_path: Path) -> None:
    host = GitHost(tmp_path, timeout=0.5)
    with silent_server() as url, pytest.raises(HostUnavailable, match=r"did not answer within 0\.5 s"):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_a_server_that_floods_refs_is_refused(host: GitHost) -> None:
    with serve(advertising(flood())) as url, pytest.raises(HostUnavailable, match=r"more than Prebinder reads|within"):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_a_hundred_thousand_branches_are_refused_with_their_number(host: GitHost) -> None:
    lines = [b"%040x refs/heads/%06d" % (n + 1, n) for n in range(100_000)]
    with serve(advertising(lines)) as url, pytest.raises(HostUnavailable, match="100000 branches and tags"):
        await host.list_refs(git_url(f"{url}/course.git"))


async def test_names_that_are_not_utf8_do_not_hide_the_others(host: GitHost) -> None:
    lines = [b"1" * 40 + b" refs/heads/caf\xe9", b"2" * 40 + b" refs/heads/main"]
    with serve(advertising(lines)) as url:
        refs = await host.list_refs(git_url(f"{url}/course.git"))
    assert [ref.name for ref in refs.refs] == ["main"]


async def test_a_persons_git_settings_and_prompts_play_no_part(
    git_server: GitServer, host: GitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = git_server.create()
    (tmp_path / ".gitconfig").write_text(f'[url "http://127.0.0.1:1/"]\n\tinsteadOf = {git_server.url}/\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_ASKPASS", "false")
    assert await host.resolve(Spec(course.repository, "main")) == course.head()


async def test_plain_git_says_where_it_is(host: GitHost) -> None:
    course = git_url("https://git.example.org/course.git")
    assert host.clone_url(course) == host.web_url(course, "a" * 40) == "https://git.example.org/course.git"


async def test_a_caller_who_gives_up_leaves_no_git(host: GitHost) -> None:
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        asking = asyncio.create_task(host.list_refs(git_url(f"http://127.0.0.1:{port}/course.git")))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
