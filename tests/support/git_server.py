"""A real Git server for tests: the demo's own HTTP server on a free port, and repositories to push to.

The fixture `git_server` is there for every test (tests/conftest.py imports it):

    def test_something(git_server):
        course = git_server.create("course", {"README.md": "hello"})   # bare repository, one commit on main
        first = course.head()
        second = course.push({"README.md": "again"}, "Say it again")    # commit and push over HTTP
        course.tag("v1.0"); course.branch("teach/week-1")
        course.url                                                      # http://127.0.0.1:…/course.git

or the context manager `serve_git(folder)`. Everything ends with the test: no thread, process or port is left.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp

from prebinder.model.spec import Repository, git_url
from prebinder.onemachine.git_http import GitHttp

_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada Lovelace",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada Lovelace",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}
DEFAULT_FILES: Mapping[str, str | bytes] = {"README.md": "# Course\n", "requirements.txt": ""}


def git(*arguments: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """Run git apart from the person's own settings; its output without the last newline. Fails loudly."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull, **_ENVIRONMENT}
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"git {' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace").removesuffix("\n")


@contextlib.contextmanager
def serve(app: ASGIApp, address: str = "127.0.0.1") -> Iterator[str]:
    """Serve an ASGI application on a free port of `address` in a thread; the value is its URL, without a slash."""
    listener = socket.create_server((address, 0))
    ready = threading.Event()

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    server = Announcing(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the test's server did not start"
        yield f"http://{address}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the test's server did not stop"


@dataclass(frozen=True)
class GitRepository:
    """A bare repository on the server, and the clone from which the test pushes."""

    name: str
    url: str
    path: Path
    """The bare repository."""
    work: Path
    """A clone of it."""

    @property
    def repository(self) -> Repository:
        return git_url(self.url)

    def head(self, ref: str = "HEAD") -> str:
        """The commit that a ref stands at on the server."""
        return git("rev-parse", "--verify", f"{ref}^{{commit}}", cwd=self.path)

    def push(
        self, files: Mapping[str, str | bytes], message: str = "Change", *, branch: str = "main", force: bool = False
    ) -> str:
        """Write the files, commit on `branch` (made when it is new) and push over HTTP. The new commit's id."""
        self.commit(files, message, branch=branch)
        ref = f"refs/heads/{branch}"
        git("push", "--quiet", *(["--force"] if force else []), "origin", f"{ref}:{ref}", cwd=self.work)
        return self.head(f"refs/heads/{branch}")

    def commit(self, files: Mapping[str, str | bytes], message: str = "Change", *, branch: str = "main") -> str:
        """The same without the push."""
        current = git("symbolic-ref", "--short", "HEAD", cwd=self.work)
        if branch != current:
            known = git("branch", "--list", branch, cwd=self.work)
            git("checkout", "--quiet", *([] if known else ["-b"]), branch, cwd=self.work)
        for name, content in files.items():
            target = self.work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        git("add", "--all", cwd=self.work)
        git("commit", "--quiet", "--allow-empty", "--file=-", cwd=self.work, stdin=message.encode())
        return git("rev-parse", "HEAD", cwd=self.work)

    def tag(self, name: str, *, at: str = "main", annotated: bool = False) -> str:
        """Tag and push; the commit that is tagged."""
        git("tag", *(["--annotate", "--message=Release"] if annotated else []), name, at, cwd=self.work)
        git("push", "--quiet", "origin", f"refs/tags/{name}", cwd=self.work)
        return self.head(f"refs/tags/{name}")

    def branch(self, name: str, *, at: str = "main") -> str:
        """Make a branch and push it; the commit where it stands."""
        at = git("rev-parse", f"{at}^{{commit}}", cwd=self.work)
        git("push", "--quiet", "origin", f"{at}:refs/heads/{name}", cwd=self.work)
        return self.head(f"refs/heads/{name}")

    def delete(self, ref: str) -> None:
        """Delete a branch or tag on the server."""
        git("push", "--quiet", "origin", "--delete", ref, cwd=self.work)


@dataclass(frozen=True)
class GitServer:
    """The server: its address, and the folder of its bare repositories."""

    url: str
    folder: Path
    work: Path

    def create(
        self, name: str = "course", files: Mapping[str, str | bytes] = DEFAULT_FILES, message: str = "First"
    ) -> GitRepository:
        """A new repository `<name>.git` with one commit on `main`."""
        path = self.folder / f"{name}.git"
        git("init", "--quiet", "--bare", "--initial-branch=main", path)
        git("config", "http.receivepack", "true", cwd=path)
        url = f"{self.url}/{name}.git"
        work = self.work / name
        git("init", "--quiet", "--initial-branch=main", work)
        git("remote", "add", "origin", url, cwd=work)
        if not url.startswith("http://127.0.0.1"):
            git("remote", "set-url", "--push", "origin", path, cwd=work)  # it takes pushes from this machine alone
        repository = GitRepository(name, url, path, work)
        repository.push(files, message)
        return repository


@contextlib.contextmanager
def serve_git(folder: Path, address: str = "127.0.0.1") -> Iterator[GitServer]:
    """A Git server that keeps everything below `folder`."""
    bare, work = folder / "bare", folder / "work"
    bare.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    with serve(GitHttp(bare), address) as url:
        yield GitServer(url, bare, work)


@pytest.fixture
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """A Git server of the test's own."""
    with serve_git(tmp_path_factory.mktemp("git-server")) as server:
        yield server
