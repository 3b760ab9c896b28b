"""What the command line says of a running controller: plain when piped, JSON when asked, and each exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette

from prebinder import compose
from prebinder.api.app import create_app
from prebinder.cli.terminal import clean
from prebinder.config.state import StateFolder
from prebinder.model.failure import FailureKind
from prebinder.model.spec import Provider, git_url
from tests.support.command import PREBINDER, Done, prebinder, started
from tests.support.controller import Running, until
from tests.support.controller import started as started_controller
from tests.support.memory_host import MemoryHost
from tests.support.serving import serving

COURSE = git_url("https://git.test/course.git")
SPEC = str(COURSE)


@dataclass
class Asked:
    """A controller with its socket, and the folder of the one who asks."""

    running: Running
    host: MemoryHost
    folder: Path

    async def __call__(self, *words: str) -> Done:
        done = await prebinder(*words, folder=self.folder)
        assert "Traceback" not in done.errors
        return done


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Asked]:
    host = MemoryHost()
    host.push(COURSE, "First")
    state = StateFolder(tmp_path / ".prebinder")
    state.create()
    async with contextlib.AsyncExitStack() as parts:
        running = await parts.enter_async_context(
            started_controller(tmp_path, [{"git": COURSE.name}], {Provider.GIT: host})
        )
        api = create_app(running.controller, None)
        await parts.enter_async_context(compose.served(api, uds=state.controller_socket))
        head = host.head(COURSE)
        await until(lambda: running.is_state(head, "ready"))
        yield Asked(running, host, tmp_path)


def broken(ask: Asked, kind: FailureKind = FailureKind.REPOSITORY) -> str:
    """A new commit on a branch that nobody registered, whose build fails."""
    revision = ask.host.push(COURSE, "Broken", branch="side")
    ask.running.builder.fail(revision, *[kind] * 4)
    return revision


async def test_status_is_one_tab_separated_line_a_build(ask: Asked) -> None:
    done = await ask("status")
    assert (done.code, done.errors) == (0, "")
    ((build, repository, ref, revision, state, failure),) = [line.split("\t") for line in done.output.splitlines()]
    assert (repository, ref, state, failure) == (SPEC, "main", "ready", "")
    assert revision == ask.host.head(COURSE)
    assert (await ask("logs", build[:6])).output.splitlines()[:1] == [f"Waiting to build {revision[:12]}."]


async def test_status_as_json_holds_everything(ask: Asked) -> None:
    done = await ask("status", "--json")
    status = json.loads(done.output)
    assert status["health"]["ok"]
    assert status["repositories"][0]["repository"] == SPEC
    assert status["queued"] == status["running"] == []


async def test_status_says_what_is_away_and_ends_with_3(ask: Asked) -> None:
    ask.running.builder.away = "podman does not answer."
    done = await ask("status")
    assert done.code == 3
    assert done.errors == "prebinder: builder: podman does not answer.\n"
    assert len(done.output.splitlines()) == 1
    assert json.loads((await ask("status", "--json")).output)["health"]["ok"] is False


async def test_status_shows_that_the_file_on_disk_is_invalid(ask: Asked) -> None:
    ask.running.live.problem = "prebinder.yaml:3: limits.time: write a duration"
    done = await ask("status")
    assert "the last good one is in force" in done.errors
    assert "prebinder.yaml:3: limits.time" in done.errors
    assert "limits.time" in json.loads((await ask("status", "--json")).output)["configuration_problem"]


async def test_a_build_that_succeeds_ends_with_0(ask: Asked) -> None:
    revision = ask.host.push(COURSE, "New", branch="side")
    done = await ask("build", f"{SPEC}/side")
    assert done.code == 0
    assert "Step 1." in done.output.splitlines()
    assert "[building]" in done.errors.splitlines()
    assert "\x1b" not in done.output + done.errors
    again = await ask("build", f"{SPEC}/{revision}", "--json")
    assert again.code == 0
    assert json.loads(again.output)["phase"] == "built"


async def test_the_events_of_a_build_are_json_lines(ask: Asked) -> None:
    ask.host.push(COURSE, "New", branch="side")
    done = await ask("build", f"https://binder.test/v2/{SPEC}/side", "--json")
    events = [json.loads(line) for line in done.output.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["phase"] for event in events][-1] == "built"


async def test_a_build_that_fails_ends_with_1_and_says_why(ask: Asked) -> None:
    broken(ask)
    done = await ask("build", f"{SPEC}/side")
    assert done.code == 1
    assert "It ended with repository." in done.output
    assert "prebinder: The repository's build failed. Read the last lines of the log" in done.errors
    build = (await ask("status")).output.split("\t")[0]
    assert (await ask("logs", build)).code == 0
    followed = await ask("logs", "--follow", build)
    assert followed.code == 1
    assert "It ended with repository." in followed.output


async def test_what_does_not_exist_or_is_not_allowed_ends_with_1(ask: Asked) -> None:
    for words, expected in (
        (("build", f"{SPEC}/nope"), "nope"),
        (("build", "git/https%3A%2F%2Fgit.test%2Fother.git/main"), "is not registered here"),
        (("logs", "ffffffffffff"), "There is no build 'ffffffffffff'"),
        (("logs", "../../etc/passwd"), "prebinder: "),
        (("cancel", "zzz"), "There is no build"),
    ):
        done = await ask(*words)
        assert done.code == 1, (words, done)
        assert expected in done.errors
        assert len(done.errors.splitlines()) == 1


async def test_bad_usage_ends_with_2(ask: Asked) -> None:
    for words in (
        ("build", "nope/a/b"),
        ("build", f"{SPEC}/-x"),
        ("build", f"{SPEC}/a..b"),
        ("build", "gh/%252e/x"),
        ("build", "https://github.com/a/b"),
        ("launch", f"{SPEC}/main", "--urlpath", "../../hub"),
        ("launch", f"{SPEC}/main", "--urlpath", "https://evil.test/"),
        ("up", "--port", "99999"),
        ("status", "--controller", "nonsense"),
        ("status", "--controller", "http://[::1"),
        ("launch", "gh/a/b", "--site", "http://[::1"),
        ("frobnicate",),
        ("status", "--nope"),
    ):
        done = await ask(*words)
        assert done.code == 2, (words, done)
        assert done.errors


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--controller", "http://127.0.0.1:9"),
        ("launch", "gh/a/b", "--site", "http://127.0.0.1:9"),
        ("logs", "abc", "--state", "elsewhere"),
    ],
)
async def test_what_is_away_ends_with_3(words: tuple[str, ...], tmp_path: Path) -> None:
    done = await prebinder(*words, folder=tmp_path)
    assert done.code == 3
    assert len(done.errors.splitlines()) == 1


async def test_a_socket_that_a_killed_controller_left_ends_with_3(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / ".prebinder")
    state.create()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(state.controller_socket))
    done = await prebinder("status", folder=tmp_path)
    assert done.code == 3
    assert "No controller answers" in done.errors


async def test_a_site_that_is_none_ends_with_3(tmp_path: Path) -> None:
    async with serving(Starlette()) as url:
        for words in (("launch", "gh/a/b/c", "--site", url), ("status", "--controller", url)):
            done = await prebinder(*words, folder=tmp_path)
            assert done.code == 3
            assert len(done.errors.splitlines()) == 1
            assert url.rstrip("/") in done.errors


async def test_ctrl_c_ends_with_130_and_the_build_goes_on(ask: Asked) -> None:
    revision = ask.host.push(COURSE, "Slow", branch="side")
    ask.running.builder.hold(revision)
    async with started("build", f"{SPEC}/side", folder=ask.folder) as process:
        assert process.stdout is not None
        while (line := await process.stdout.readline()) != b"Step 1.\n":
            assert line
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    ask.running.builder.release()
    await until(lambda: ask.running.is_state(revision, "ready"))


async def test_a_reader_who_has_seen_enough_is_no_error(ask: Asked) -> None:
    build = (await ask("status")).output.split("\t")[0]
    command = f"{PREBINDER} logs {build} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command), cwd=ask.folder, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert errors == b""


def test_what_a_build_writes_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b]0;title\x07b\x1b[31mc\rd\x9b1me\tf\n") == "abcd1me\tf\n"
