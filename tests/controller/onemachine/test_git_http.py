"""The demo's Git server, against a real Git client and against clients that are none."""

from __future__ import annotations

import gzip
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from prebinder.onemachine.git_http import GitHttp
from prebinder.processes import runs
from tests.support.bad_git_servers import packet
from tests.support.git_server import GitServer, git, serve

RECEIVE_PACK = {"content-type": "application/x-git-receive-pack-request"}
UPLOAD_PACK = {"content-type": "application/x-git-upload-pack-request"}


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if runs(p)]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = {p.pid for p in children()}
    yield
    wait_until(lambda: {p.pid for p in children()} <= before)


def test_clone_commit_and_push_work(git_server: GitServer, tmp_path: Path) -> None:
    course = git_server.create()
    git("clone", "--quiet", course.url, tmp_path / "clone")
    assert (tmp_path / "clone/README.md").read_text() == "# Course\n"
    second = course.push({"README.md": "# Changed\n"}, "Change it")
    git("pull", "--quiet", cwd=tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == second


def test_branches_and_tags_are_made_and_deleted(git_server: GitServer) -> None:
    course = git_server.create()
    course.branch("teach/week-1")
    course.tag("v1.0", annotated=True)
    course.delete("teach/week-1")
    assert git("for-each-ref", "--format=%(refname)", cwd=course.path) == "refs/heads/main\nrefs/tags/v1.0"


def test_a_push_of_megabytes_streams(git_server: GitServer, tmp_path: Path) -> None:
    course = git_server.create()
    blob = os.urandom(3 * 2**20)  # more than Git's http.postBuffer: it comes in chunks, without a length
    course.push({"data.bin": blob})
    git("clone", "--quiet", "--depth=1", course.url, tmp_path / "clone")
    assert (tmp_path / "clone/data.bin").read_bytes() == blob


def test_it_works_below_any_path(git_server: GitServer, tmp_path: Path) -> None:
    course = git_server.create()
    with serve(Starlette(routes=[Mount("/some/git", GitHttp(git_server.folder))])) as url:
        git("clone", "--quiet", f"{url}/some/git/course.git", tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == course.head()


def test_many_clone_at_once(git_server: GitServer, tmp_path: Path) -> None:
    course = git_server.create()
    with serve(GitHttp(git_server.folder, parallel=2)) as url, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: git("clone", "--quiet", f"{url}/course.git", tmp_path / str(n)), range(8)))
    assert {git("rev-parse", "HEAD", cwd=tmp_path / str(n)) for n in range(8)} == {course.head()}


def test_a_repository_that_takes_no_pushes_refuses_them(git_server: GitServer) -> None:
    course = git_server.create()
    git("config", "http.receivepack", "false", cwd=course.path)
    with pytest.raises(AssertionError, match="403"):
        course.push({"a": "b"})


def test_a_compressed_request_is_understood(git_server: GitServer) -> None:
    course = git_server.create()
    ask = packet(b"command=ls-refs\n") + b"0001" + packet(b"symrefs\n") + b"0000"
    headers = {**UPLOAD_PACK, "git-protocol": "version=2", "content-encoding": "gzip"}
    answer = httpx.post(f"{course.url}/git-upload-pack", content=gzip.compress(ask), headers=headers)
    assert answer.status_code == 200
    assert f"{course.head()} refs/heads/main".encode() in answer.content


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/course.git"),
        ("GET", "/course.git/"),
        ("GET", "/course.git/HEAD"),
        ("GET", "/course.git/config"),
        ("GET", "/course.git/prebinder-hook.json"),
        ("GET", "/course.git/objects/info/packs"),
        ("GET", "/course.git/info/refs"),
        ("GET", "/course.git/info/refs?service=git-upload-archive"),
        ("GET", "/course.git/info/refs?service=git-upload-pack&service=git-receive-pack"),
        ("GET", "/course.git/info/refs?service="),
        ("POST", "/course.git/info/refs?service=git-upload-pack"),
        ("PUT", "/course.git/git-receive-pack"),
        ("GET", "/course.git/git-upload-pack"),
        ("POST", "/course.git/git-upload-archive"),
        ("GET", "/none.git/info/refs?service=git-upload-pack"),
        ("GET", "/course/info/refs?service=git-upload-pack"),
        ("GET", "/../course.git/info/refs?service=git-upload-pack"),
        ("GET", "/%2e%2e/bare/course.git/info/refs?service=git-upload-pack"),
        ("GET", "/..%2fbare%2fcourse.git/info/refs?service=git-upload-pack"),
        ("GET", "/x/../course.git/info/refs?service=git-upload-pack"),
        ("GET", "//course.git/info/refs?service=git-upload-pack"),
        ("GET", "/-course.git/info/refs?service=git-upload-pack"),
        ("GET", "/course.git%0a/info/refs?service=git-upload-pack"),
        ("GET", "/course.git%00/info/refs?service=git-upload-pack"),
        ("GET", "/caf%C3%A9.git/info/refs?service=git-upload-pack"),
        ("GET", "/%ff.git/info/refs?service=git-upload-pack"),
    ],
)
def test_everything_else_is_not_found(git_server: GitServer, method: str, path: str) -> None:
    git_server.create()
    address = urlsplit(git_server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        # Written by hand, for clients tidy paths up before they send them.
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        assert b" 404 " in connection.makefile("rb").readline()


def test_a_form_of_another_site_cannot_push(git_server: GitServer) -> None:
    course = git_server.create()
    answer = httpx.post(f"{course.url}/git-receive-pack", content=b"0000", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_pushes_from_elsewhere_are_refused_and_clones_are_not(git_server: GitServer) -> None:
    git_server.create()

    async def status(app: GitHttp, service: str, client: str) -> int:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return (await http.get(f"/course.git/info/refs?service={service}")).status_code

    app = GitHttp(git_server.folder)
    assert await status(app, "git-receive-pack", "192.0.2.7") == 403
    assert await status(app, "git-upload-pack", "192.0.2.7") == 200
    assert await status(app, "git-receive-pack", "::1") == 200
    assert await status(GitHttp(git_server.folder, push_from_anywhere=True), "git-receive-pack", "192.0.2.7") == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_push_beyond_the_limit_is_refused(git_server: GitServer, chunked: bool) -> None:
    git_server.create()

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield packet(b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/x\n")

    content = pieces() if chunked else b"".join(pieces())
    with serve(GitHttp(git_server.folder, max_body=1000)) as url:
        answer = httpx.post(f"{url}/course.git/git-receive-pack", content=content, headers=RECEIVE_PACK)
    assert answer.status_code == 413


def test_a_push_that_is_too_large_leaves_the_repository_as_it_was(git_server: GitServer) -> None:
    course = git_server.create()
    before = course.head()
    course.commit({"data.bin": os.urandom(200_000)})
    with serve(GitHttp(git_server.folder, max_body=100_000)) as url, pytest.raises(AssertionError, match="413"):
        git("push", f"{url}/course.git", "main", cwd=course.work)
    assert course.head() == before
    assert git("fsck", cwd=course.path) == ""


def half_a_push(url: str) -> socket.socket:
    """A client that announces more than it sends."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=20)
    connection.sendall(
        b"POST /course.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        b"Content-Type: application/x-git-receive-pack-request\r\n\r\n0"
    )
    return connection


def test_a_client_that_goes_away_takes_git_with_it(git_server: GitServer) -> None:
    git_server.create()
    with half_a_push(git_server.url):
        wait_until(lambda: bool(children()))
    wait_until(lambda: not children())


def test_a_client_that_never_ends_is_ended(git_server: GitServer) -> None:
    git_server.create()
    with serve(GitHttp(git_server.folder, time_limit=0.3)) as url, half_a_push(url) as connection:
        assert b" 500 " in connection.makefile("rb").readline()
        wait_until(lambda: not children())


def test_what_is_no_git_request_is_answered_and_the_server_lives_on(git_server: GitServer) -> None:
    course = git_server.create()
    for content in (b"", b"rubbish", b"ffff", b"\xff" * 70_000):
        answer = httpx.post(f"{course.url}/git-upload-pack", content=content, headers=UPLOAD_PACK, timeout=20)
        assert answer.status_code in (200, 500)
    assert httpx.get(f"{course.url}/info/refs?service=git-upload-pack").status_code == 200
