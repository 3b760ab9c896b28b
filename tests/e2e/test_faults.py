"""What goes wrong, on a whole Prebinder with real parts: each fault is said clearly, and what was broken comes back.

Faults of single parts are tested where the parts are: tests/controller/cli (start-up, configuration, exit codes),
tests/controller/builders (each limit), tests/launcher_site/test_launch.py (each thing a click can meet).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from prebinder.onemachine.defaults import default_configuration
from tests.support.git_server import GitServer, git
from tests.support.stack import Stack, stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.hub, pytest.mark.timeout(900)]

Event = dict[str, Any]
BUILT_BRANCHES = 'branches: ["built/*"]\n    tags: []'
"""In place of the demo's own branches, so that nothing but what a test pushes is built."""
SCRIPT = "#!/bin/sh\n"


@dataclass
class Faulty(Stack):
    """A running Prebinder with a checkout of its demo's repository to push from."""

    checkout: Path = field(default_factory=Path)

    def edit(self, old: str, new: str) -> None:
        """Change the configuration as an editor does: another file takes the place of the old one."""
        text = self.configuration.read_text()
        assert old in text
        half = self.configuration.with_suffix(".edited")
        half.write_text(text.replace(old, new))
        half.replace(self.configuration)

    def push(self, **scripts: str) -> dict[str, str]:
        """Push branches `built/<name>`, each with a build script, all at once; the commit of each."""
        revisions = {}
        for name, script in scripts.items():
            git("checkout", "--quiet", "--orphan", f"built/{name}", cwd=self.checkout)
            git("rm", "-rfq", "--ignore-unmatch", ".", cwd=self.checkout)
            (self.checkout / "README.md").write_text(f"{name}\n")
            (self.checkout / "postBuild").write_text(SCRIPT + script + "\n")
            (self.checkout / "postBuild").chmod(0o755)
            git("add", "--all", cwd=self.checkout)
            git("commit", "--quiet", "-m", f"Add {name}", cwd=self.checkout)
            revisions[name] = git("rev-parse", "HEAD", cwd=self.checkout)
        git("push", "--quiet", "origin", *[f"built/{name}" for name in scripts], cwd=self.checkout)
        return revisions

    def builds(self) -> list[dict[str, Any]]:
        transport = httpx.HTTPTransport(uds=str(self.state.controller_socket))
        with httpx.Client(transport=transport, base_url="http://controller", timeout=10) as client:
            found: list[dict[str, Any]] = client.get("/api/builds").json()
            return found

    def build_of(self, revision: str, *states: str) -> dict[str, Any] | None:
        return next((b for b in self.builds() if b["revision"] == revision and b["state"] in states), None)

    def spec(self, ref: str, url: str | None = None) -> str:
        return f"git/{quote(url or self.demo_url, safe='')}/{quote(ref, safe='')}"

    def health(self) -> dict[str, bool]:
        return {check["service"]: check["ok"] for check in self.get("/health").json()["checks"]}

    def child(self, *words: str) -> psutil.Process:
        """The process below `prebinder up` whose command line holds all the words."""
        assert self.process
        found = self.children(*words)
        assert found, f"no child {words}"
        return found[0]

    def children(self, *words: str) -> list[psutil.Process]:
        assert self.process
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if all(any(word in part for part in process.cmdline()) for word in words):
                    found.append(process)
        return found

    @property
    def log(self) -> str:
        return (self.state.log / "prebinder.log").read_text()


def click(url: str, spec: str, query: str = "", timeout: float = 150) -> list[Event]:
    """A click's events, read to the end as a browser does."""
    events = []
    with httpx.stream("GET", f"{url}build/{spec}{query}", timeout=timeout) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line[5:]))
                if events[-1]["phase"] in ("ready", "failed"):
                    return events
    raise AssertionError(f"the stream ended without an end: {events[-3:]}")


def opens(event: Event) -> bool:
    answer = httpx.get(f"{event['url']}api/status", params={"token": event["token"]}, timeout=30)
    return event["phase"] == "ready" and answer.status_code == 200


@contextlib.contextmanager
def paused(process: psutil.Process) -> Iterator[None]:
    """The process hangs while this is open."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One Prebinder for this module; it is killed and broken, and each test leaves it well."""
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    root = tmp_path_factory.mktemp("faults")
    with stack(root, "limits: {parallel: 3, backoff: 1s}\nhub: {start_timeout: 20s}\n") as plain:
        here = Faulty(plain.root, plain.port, checkout=root / "checkout")
        here.edit('branches: [HEAD, "teach/*"]', BUILT_BRANCHES)
        try:
            here.start()
            git("clone", "--quiet", here.demo_url, here.checkout)
            yield here
            assert here.stop() == 0
            assert here.left_behind() == []
            assert "Traceback" not in here.output
        finally:
            if here.process:
                here.kill()
                here.start()
                here.stop()


@pytest.fixture(scope="module")
def ready(running: Faulty) -> str:
    """The spec of an image that is ready."""
    revision = running.push(ready="true")["ready"]
    until("the image is ready", lambda: running.build_of(revision, "ready"), 120, 0.2)
    return running.spec("built/ready")


def test_builds_that_go_wrong_end_with_their_kind_their_last_lines_and_their_log(running: Faulty) -> None:
    running.edit("parallel: 3", "parallel: 3, time: 90s, log: 200K, disk: 300M, memory: 300M")
    until("the limits are in force", lambda: running.log.count('"configuration.loaded"') >= 1, 60)
    revisions = running.push(
        fails="echo some-words-of-ours; nonsense-command",
        hangs="echo some-words-of-ours; sleep 1000",
        floods="echo some-words-of-ours; yes",
        fills="echo some-words-of-ours; dd if=/dev/zero of=big bs=1M count=600; sleep 1000",
        eats="echo some-words-of-ours; python -c 'len(b\"x\" * 10**9)'",
    )
    kinds = {"fails": "repository", "hangs": "timeout", "floods": "log-flood", "fills": "disk", "eats": "memory"}
    for name, kind in kinds.items():
        found = until(f"{name} ends", lambda n=name: running.build_of(revisions[n], "failed", "ready"), 240, 0.3)
        assert (found["state"], found["failure"]) == ("failed", kind), (name, found)
        build = str(found["id"])
        *before, last = click(running.url, running.spec(f"built/{name}"))
        assert (last["phase"], last["failure"], last["build"]) == ("failed", kind, build)
        assert last["message"].strip()
        assert any("some-words-of-ours\n" in event["message"] for event in before)
        log = running.get(f"/builds/{build}/log").text
        assert "some-words-of-ours\n" in log
        assert log.endswith(last["message"])
        assert len(log) < 300_000
    assert "nonsense-command" in running.build_of(revisions["fails"], "failed")["message"]  # type: ignore[index]
    build = str(running.build_of(revisions["fails"], "failed")["id"])  # type: ignore[index]
    assert "some-words-of-ours" in running.command("logs", build[:8]).stdout
    for heading in ("The build took too long", "The build wrote too much log", "The build filled its disk quota"):
        until(f"the status page says: {heading}", lambda h=heading: h in running.get("/status/").text, 30)
    running.edit(", time: 90s, log: 200K, disk: 300M, memory: 300M", "")


def test_an_invalid_file_keeps_the_last_good_one_and_says_so_and_a_valid_one_is_taken_at_once(
    running: Faulty, git_server: GitServer
) -> None:
    course = git_server.create("course")
    addition = f"repositories:\n  - git: {course.url}\n    build_pack: pip\n"
    running.edit("repositories:\n", addition + "    brnches: [main]\n")
    problem = f"{running.configuration}:"

    def said() -> bool:
        return "the last good one is in force" in running.command("status", check=False).stderr

    until("status says so", said, 20)
    assert re.search(rf"{re.escape(problem)}\d+: repositories\[0\].brnches: unknown key", running.log)
    until("the status page says so", lambda: "brnches" in running.get("/status/").text, 20)
    assert "brnches" in json.loads(running.command("status", "--json").stdout)["configuration_problem"]
    assert not [b for b in running.builds() if b["revision"] == course.head()]
    assert click(running.url, running.spec("main", course.url))[-1]["status_code"] == 403

    running.edit("    brnches: [main]\n", "")
    until("the new repository is built", lambda: running.build_of(course.head(), "ready"), 90, 0.2)
    until("the page is as before", lambda: "brnches" not in running.get("/status/").text, 20)
    assert running.command("status").stderr == ""
    running.edit(addition, "repositories:\n")
    until("it is gone again", lambda: course.url not in running.get("/").text, 20)


HOSTILE = [
    "gh/../../etc/passwd",
    "gh/ada/%2e%2e/HEAD",
    "gh/ada/course/%2e%2e/%2e%2e/x",
    "gh/ada/course/a%00b",
    "gh/ada/course/a%0d%0aX-Evil:%201",
    "gh/ada/course/%1b[31m",
    "gh/ada/course/-upload-pack=touch",
    "gh/-ada/course/HEAD",
    "gh/ada/course/--upload-pack",
    "gh/ada/course/" + "a" * 10_000,
    "gh/ada/course/%252e%252e",
    "git/http%253A%252F%252Fgit.test%252Fx/HEAD",
    "git/ext%3A%3Ash%20-c%20touch%25/HEAD",
    "git/file%3A%2F%2F%2Fetc/HEAD",
    "git/--upload-pack%3Dtouch/HEAD",
    "git/http%3A%2F%2F-x%2Fy/HEAD",
    "git/http%3A%2F%2Fuser%3Apassword%40git.test%2Fx/HEAD",
    "gl/a%2F..%2Fb/HEAD",
    "nope/ada/course/HEAD",
    "gh/ada/course/%ff%fe",
    "gh/%3Cscript%3E/x/HEAD",
]


def raw_get(port: int, path: str) -> tuple[int, bytes]:
    """One request whose path no client library tidies up; of a stream the first event."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        return answer.status, answer.readline() if stream else answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda spec: spec[:40])
def test_a_hostile_spec_is_one_failed_event_or_a_plain_refusal(running: Faulty, spec: str) -> None:
    status, body = raw_get(running.port, f"/build/{spec}")
    if status == 200:
        event = json.loads(body.removeprefix(b"data:"))
        assert event["phase"] == "failed"
        assert event["status_code"] in (400, 403)
        assert len(event["message"]) < 500
        assert event["message"][:-1].isprintable()
        assert "password@" not in event["message"]
    else:
        assert status in (400, 404, 414)
    status, body = raw_get(running.port, f"/v2/{spec}")
    assert status in (200, 400, 404, 414)
    assert b"<script>/x" not in body
    assert b"Traceback" not in body


def test_what_does_not_exist_is_told_from_what_is_not_allowed(running: Faulty, git_server: GitServer) -> None:
    stranger = git_server.create("stranger")
    missing = f"{git_server.url}/missing.git"
    (event,) = click(running.url, running.spec("no-such-branch"))[-1:]
    assert (event["phase"], event["status_code"], event["failure"]) == ("failed", 404, "not-found")
    assert "no-such-branch" in event["message"]
    for url in (stranger.url, missing):
        (event,) = click(running.url, running.spec("main", url))[-1:]
        assert (event["status_code"], event["failure"]) == (403, "refused")
        assert "Ask the operator to register it" in event["message"]

    running.edit("repositories:\n", "on_demand: anyone\nrepositories:\n")
    until("anyone may", lambda: raw_status(running)["on_demand"] == "anyone", 20)
    (event,) = click(running.url, running.spec("main", missing))[-1:]
    assert (event["status_code"], event["failure"]) == (404, "not-found")
    (event,) = click(running.url, running.spec("nope", stranger.url))[-1:]
    assert (event["status_code"], event["failure"]) == (404, "not-found")
    running.edit("on_demand: anyone\n", "")
    until("nobody else may again", lambda: raw_status(running)["on_demand"] == "registered", 20)


def raw_status(running: Faulty) -> dict[str, Any]:
    transport = httpx.HTTPTransport(uds=str(running.state.controller_socket))
    with httpx.Client(transport=transport, base_url="http://controller", timeout=10) as client:
        catalogue: dict[str, Any] = client.get("/api/catalogue").json()
        return catalogue


def test_a_hub_that_is_killed_is_said_and_comes_back(running: Faulty, ready: str) -> None:
    assert opens(click(running.url, ready)[-1])
    running.child("-m", "jupyterhub", "-f").kill()
    (event,) = click(running.url, ready)[-1:]
    assert (event["phase"], event["failure"]) == ("failed", "hub")
    assert "JupyterHub" in event["message"]
    assert "Traceback" not in event["message"]
    until("the Hub is back", lambda: running.health()["JupyterHub"], 60, 0.2)
    assert opens(click(running.url, ready)[-1])


def test_health_names_a_hub_or_an_engine_that_hangs(running: Faulty, ready: str) -> None:
    hub, engine = running.child("-m", "jupyterhub", "-f"), running.child("podman", "system", "service")
    with paused(hub):
        until("health says it", lambda: not running.health()["JupyterHub"], 30)
        assert running.get("/health").status_code == 503
        until("the controller is well", lambda: running.health()["controller"], 30)
    until("health says that it is back", lambda: running.health()["JupyterHub"], 30)
    with paused(engine):
        until("health says it", lambda: not running.health()["image store"], 30)
        checks = running.get("/health")
        assert checks.status_code == 503
        (event,) = click(running.url, ready)[-1:]
        assert (event["phase"], event["failure"]) == ("failed", "hub")
        assert event["message"].strip()
    until("health says that it is back", lambda: running.health()["image store"], 30)
    until("clicks work again", lambda: click(running.url, ready)[-1]["phase"] == "ready", 60, 0.5)


def test_an_engine_that_is_killed_comes_back(running: Faulty, ready: str) -> None:
    engine = running.child("podman", "system", "service")
    engine.kill()
    until("another runs", lambda: any(p.pid != engine.pid for p in running.children("podman", "service")), 30)
    until("health is well", lambda: all(running.health().values()), 30)
    assert opens(click(running.url, ready)[-1])


def test_controller_and_endpoint_need_little_memory_at_rest(running: Faulty) -> None:
    assert running.process
    used = psutil.Process(running.process.pid).memory_full_info().pss / 1e6
    assert used <= 150, f"{used:.0f} MB"


def whole(ledger: Path) -> bool:
    with sqlite3.connect(ledger) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_after_kill_9_in_mid_build_and_mid_click_the_same_link_works(running: Faulty, ready: str) -> None:
    revision = running.push(late="echo begun; sleep 5")["late"]
    build = until("it is being built", lambda: running.build_of(revision, "running"), 60)
    events: list[Event] = []
    launching = threading.Event()

    def follow() -> None:
        with httpx.stream("GET", f"{running.url}build/{ready}", timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    events.append(json.loads(line[5:]))
                    if events[-1]["phase"] == "launching":
                        launching.set()

    with ThreadPoolExecutor() as pool:
        following = pool.submit(follow)
        assert launching.wait(60)
        running.kill()
        assert isinstance(following.exception(timeout=30), httpx.TransportError)
    assert events[-1]["phase"] == "launching"
    assert whole(running.state.ledger)
    running.start(limit=120)
    assert whole(running.state.ledger)
    again = running.build_of(revision, "queued", "running", "ready")
    assert again
    assert again["id"] == build["id"], "the build goes on, it is not another"
    assert opens(click(running.url, ready)[-1])
    assert opens(click(running.url, running.spec("built/late"))[-1])
    assert "begun\n" in running.get(f"/builds/{build['id']}/log").text
    assert until("it is ready", lambda: running.build_of(revision, "ready"), 60)["attempt"] == 2


MOMENTS = [
    ("at once", "", 0.3),
    ("while the parts are read", "", 1.0),
    ("while the engine starts", "Starting Prebinder", 0.05),
    ("while Hub and base image come", "container engine ", 0.3),
    ("when the Hub is there", "JupyterHub, its proxy and culler ", 0.0),
    ("when all is there", "Prebinder is ready", 0.0),
]


def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    """On a path that is too long for a Unix socket, too."""
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    root = tmp_path / ("a-path-that-is-too-long-for-a-socket-" * 3)
    root.mkdir()
    with stack(root) as here:
        path = default_configuration(here.state, here.port)
        path.write_text(path.read_text().replace('branches: [HEAD, "teach/*"]', BUILT_BRANCHES))
        for name, line, pause in MOMENTS:
            starting = here.launch()
            if line:
                until(name, lambda line=line: line in here.output, 120, 0.01)
            # Moments inside a step say nothing on the screen: this is no wait for a result.
            time.sleep(pause)
            # As a terminal does it: to everything that runs in it. Twice, as impatient people do.
            os.killpg(starting.pid, signal.SIGINT)
            if starting.poll() is None and name.startswith("when"):
                os.killpg(starting.pid, signal.SIGINT)
            code = starting.wait(timeout=60)
            here.process = None
            assert code in (0, 130), (name, here.output)
            assert "Traceback" not in here.output, (name, here.output)
            assert here.left_behind() == [], name
        assert "Prebinder is ready" in here.output
