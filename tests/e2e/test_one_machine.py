"""The whole way on one machine, as a person goes it: push, watch the build, click, work in Jupyter, leave.

Real Git, repo2docker, podman, JupyterHub, culler and Chromium; nothing is scripted or replaced.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.browser import artifacts, chromium
from tests.support.git_server import git
from tests.support.stack import Stack, stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.hub, pytest.mark.browser, pytest.mark.timeout(1200)]
__all__ = ["artifacts", "chromium"]

QUICK_CULLING = """
hub:
  cull: {idle: 25s, every: 2s}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One Prebinder for this module, with servers culled after twenty-five idle seconds."""
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    with stack(tmp_path_factory.mktemp("pb"), QUICK_CULLING) as here:
        here.start()
        until("the demo's images are ready", lambda: all_ready(here), 300, 0.5)
        yield here
        here.stop()
        assert here.left_behind() == []


def link(running: Stack, ref: str = "HEAD") -> str:
    return f"{running.url}v2/git/{quote(running.demo_url, safe='')}/{ref}"


def clone(running: Stack, folder: Path) -> Path:
    git("clone", running.demo_url, folder)
    return folder


def push_a_change(checkout: Path, name: str, text: str) -> str:
    (checkout / name).write_text(text)
    git("add", "-A", cwd=checkout)
    git("commit", "-m", f"Change {name}", cwd=checkout)
    git("push", "origin", "HEAD", cwd=checkout)
    return git("rev-parse", "HEAD", cwd=checkout)


def builds(running: Stack) -> list[dict[str, object]]:
    # Exit code 3 says that a part is not well at this moment; the builds are told all the same.
    said = running.command("status", check=False)
    assert said.returncode in (0, 3), said.stdout + said.stderr
    return [
        dict(zip(("id", "repository", "ref", "revision", "state", "failure"), line.split("\t"), strict=True))
        for line in said.stdout.splitlines()
    ]


def status(running: Stack) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(running.command("status", "--json", check=False).stdout)
    return said


def all_ready(running: Stack) -> bool:
    there = builds(running)
    return bool(there) and all(b["state"] == "ready" for b in there)


def build_of(running: Stack, revision: str, state: str) -> dict[str, object] | None:
    return next((b for b in builds(running) if b["revision"] == revision and b["state"] == state), None)


def test_a_push_is_built_at_once_and_its_link_opens_in_that_image(
    running: Stack, tmp_path: Path, chromium: Browser, artifacts: Path
) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(running.url)
    page.get_by_text("Examples").first.wait_for()
    page.screenshot(path=artifacts / "home.png", full_page=True)

    checkout = clone(running, tmp_path / "examples")
    revision = push_a_change(checkout, "hello.txt", "pushed by the test\n")
    pushed = time.time()
    build = until(
        "the build is there", lambda: next((b for b in builds(running) if b["revision"] == revision), None), 10
    )
    until("the image is ready", lambda: build_of(running, revision, "ready"), 300, 0.5)
    until("all is well", lambda: status(running)["health"]["ok"], 60, 0.5)

    assert "jupyterlab" in running.command("logs", str(build["id"])).stdout, "the log is kept and can be read"
    started = next(
        datetime.fromisoformat(b["started_at"]).timestamp() for b in httpx_builds(running) if b["revision"] == revision
    )
    assert started - pushed < 20, "the build did not start at once"

    clicked = time.monotonic()
    page.goto(link(running, "main") + "?urlpath=" + quote("lab/tree/hello.txt", safe=""))
    page.wait_for_url(re.compile(r"/user/.+/lab"), timeout=60_000)
    page.get_by_text("pushed by the test").first.wait_for(timeout=120_000)
    (artifacts / "click.txt").write_text(f"click to file open in JupyterLab: {time.monotonic() - clicked:.1f} s\n")
    page.screenshot(path=artifacts / "jupyter.png")
    server = re.match(r"(http://[^/]+/user/[^/]+/)", page.url)
    assert server
    context.close()

    until("the idle server is culled", lambda: gone(server[1]), 150, 0.5)


def httpx_builds(running: Stack) -> list[dict[str, str]]:
    transport = httpx.HTTPTransport(uds=str(running.state.controller_socket))
    with httpx.Client(transport=transport, base_url="http://controller", timeout=10) as client:
        answer: list[dict[str, str]] = client.get("/api/builds").json()
        return answer


def gone(server: str) -> bool:
    """The proxy knows the server no more."""
    answer = httpx.get(server + "api/status", timeout=10, follow_redirects=False)
    return answer.status_code in (302, 404, 424, 503)


def test_a_click_on_a_new_commit_builds_it_while_the_person_watches(
    running: Stack, tmp_path: Path, chromium: Browser, artifacts: Path
) -> None:
    checkout = clone(running, tmp_path / "examples")
    git("checkout", "-b", "side", cwd=checkout)
    (checkout / "side.txt").write_text("only on the side\n")
    git("add", "-A", cwd=checkout)
    git("commit", "-m", "A branch that nobody registered", cwd=checkout)
    git("push", "origin", "side", cwd=checkout)

    page = chromium.new_page()
    page.goto(link(running, "side"))
    page.get_by_text(re.compile("Building|Fetching", re.IGNORECASE)).first.wait_for(timeout=30_000)
    page.screenshot(path=artifacts / "launch-building.png")
    page.wait_for_url(re.compile(r"/user/.+"), timeout=300_000)
    page.close()


def test_a_build_that_fails_says_why_and_keeps_its_log(
    running: Stack, tmp_path: Path, chromium: Browser, artifacts: Path
) -> None:
    checkout = clone(running, tmp_path / "examples")
    git("checkout", "-b", "teach/broken", cwd=checkout)
    (checkout / "requirements.txt").write_text("this-package-does-not-exist-anywhere==99\n")
    git("commit", "-am", "Break it", cwd=checkout)
    git("push", "origin", "teach/broken", cwd=checkout)
    revision = git("rev-parse", "HEAD", cwd=checkout)
    failed = until("the build failed", lambda: build_of(running, revision, "failed"), 300, 0.5)
    assert failed["failure"] == "repository"
    assert "this-package-does-not-exist-anywhere" in running.command("logs", str(failed["id"])).stdout

    done = running.command("launch", f"git/{quote(running.demo_url, safe='')}/teach/broken", check=False)
    assert done.returncode == 1
    page = chromium.new_page()
    page.goto(link(running, "teach/broken"))
    page.get_by_text("The repository's build failed").first.wait_for(timeout=60_000)
    page.screenshot(path=artifacts / "launch-failed.png")
    page.close()


def test_the_command_line_launches_and_prints_an_address_that_answers(running: Stack) -> None:
    address = running.command("launch", f"git/{quote(running.demo_url, safe='')}/HEAD").stdout.strip()
    answer = httpx.get(address.replace("?", "api/status?"), timeout=30)
    assert answer.status_code == 200


def test_a_server_has_the_binder_environment_and_no_way_to_the_hub(running: Stack) -> None:
    address = running.command("launch", f"git/{quote(running.demo_url, safe='')}/HEAD").stdout.strip()
    url, token = address.split("?token=")
    headers = {"authorization": f"token {token}"}
    made = httpx.post(url + "api/terminals", headers=headers, timeout=30)
    assert made.status_code == 200
    root = httpx.get(url + "api/contents/", headers=headers, timeout=30).json()
    assert "index.ipynb" in [entry["name"] for entry in root["content"]]


def test_after_kill_9_it_goes_on_where_it_was_and_leaves_nothing(tmp_path: Path) -> None:
    with stack(tmp_path / "pb") as here:
        here.start()
        until("the demo's images are ready", lambda: all_ready(here), 300, 0.5)
        checkout = clone(here, tmp_path / "examples")
        revision = push_a_change(checkout, "requirements.txt", "cowsay==6.1\n")
        until("it is being built", lambda: build_of(here, revision, "running"), 30)
        here.kill()
        seconds = here.start(limit=60)
        assert seconds < 60
        until("the interrupted build is finished", lambda: build_of(here, revision, "ready"), 300, 0.5)
        assert here.stop(signal.SIGTERM) == 0
        assert here.left_behind() == []


def test_a_second_one_on_the_same_folder_is_refused_with_one_line(running: Stack) -> None:
    second = running.command("up", check=False)
    assert second.returncode == 3
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr
