"""The example hook in examples/git-hook works as its first lines say, on a real Git server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prebinder.config.models import SecretRef
from prebinder.hosts.base import RefChanged
from prebinder.hosts.git import GitHost
from tests.support.git_server import GitRepository, GitServer, git, serve

HOOK = Path(__file__).parents[3] / "examples" / "git-hook" / "post-receive"


def push(course: GitRepository, *refs: str) -> str:
    done = subprocess.run(
        ["git", "push", "origin", *refs], cwd=course.work, capture_output=True, timeout=60, check=True, encoding="utf-8"
    )
    return done.stderr


def test_a_push_to_any_git_server_asks_for_a_build(git_server: GitServer, tmp_path: Path) -> None:
    deliveries: list[tuple[dict[str, str], bytes]] = []

    async def take(request: Request) -> Response:
        deliveries.append((dict(request.headers), await request.body()))
        return Response(status_code=202)

    course = git_server.create()
    secret = tmp_path / "secret"
    secret.write_text("as long as a secret should be\n")
    shutil.copy(HOOK, course.path / "hooks" / "post-receive")
    with serve(Starlette(routes=[Route("/hooks/git", take, methods=["POST"])])) as url:
        for name, value in (("hook", f"{url}/hooks/git"), ("url", course.url), ("secret", str(secret))):
            git("config", f"prebinder.{name}", value, cwd=course.path)
        new = course.commit({"a": "b"})
        said = push(course, "main", 'main:refs/heads/a"b')
    assert "Prebinder: main, build requested" in said
    host = GitHost(tmp_path, webhook_secret=SecretRef(file=secret))
    changes = {host.verify_webhook(headers, body)[0] for headers, body in deliveries}
    assert changes == {RefChanged(course.repository, name, new) for name in ("main", 'a"b')}


def test_without_settings_or_prebinder_the_push_counts(git_server: GitServer, tmp_path: Path) -> None:
    course = git_server.create()
    shutil.copy(HOOK, course.path / "hooks" / "post-receive")
    course.commit({"a": "b"})
    assert "set prebinder.hook" in push(course, "main")
    (tmp_path / "secret").write_text("x")
    for name, value in (("hook", "http://127.0.0.1:1/"), ("url", course.url), ("secret", str(tmp_path / "secret"))):
        git("config", f"prebinder.{name}", value, cwd=course.path)
    new = course.commit({"a": "c"})
    assert "it will see the push at its next look" in push(course, "main")
    assert course.head() == new
