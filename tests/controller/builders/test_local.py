"""Builds on this machine, with real Git, repo2docker and podman: what they make, and how each kind of failure ends."""

# What is waited for here are other processes, which set no event of ours; and tests may block their own loop.
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from prebinder.builders.base import BuildOrder
from prebinder.builders.engine import Engine
from prebinder.builders.local import LocalBuilder
from prebinder.config.models import RegistryConfig
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, EngineError, FailureKind
from prebinder.model.images import ImageName
from prebinder.registry import OCIRegistry
from tests.support.engine import podman
from tests.support.git_server import GitRepository, GitServer
from tests.support.registry import HTPASSWD, Registry, running_registry

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine")]

SCRIPT = "#!/bin/sh\n"


@pytest.fixture
def course(git_server: GitServer) -> GitRepository:
    return git_server.create("course", {"README.md": "hello"})


@pytest.fixture
def builder(engine: Engine, base_image: str, tmp_path: Path) -> LocalBuilder:
    return LocalBuilder(engine, tmp_path / "work", pip_base_image=base_image)


def order(course: GitRepository, **more: Any) -> BuildOrder:
    revision = more.pop("revision", None) or course.head()
    given: dict[str, Any] = {
        "id": f"b{uuid.uuid4().hex}",
        "repository": course.repository,
        "clone_url": course.url,
        "revision": revision,
        "ref": "main",
        "image": ImageName(f"localhost/prebinder/{uuid.uuid4().hex[:8]}", revision),
        "build_pack": "pip",
        "base_image": None,
        "push": False,
        "time_limit": 120.0,
        "memory_limit": 2 * 10**9,
        "log_limit": 10**6,
        "disk_limit": 2 * 10**9,
    }
    return BuildOrder(**{**given, **more})


async def said(builder: LocalBuilder, wanted: BuildOrder) -> list[tuple[Phase, str]]:
    return [(p.phase, p.message) async for p in builder.build(wanted)]


async def failure(builder: LocalBuilder, wanted: BuildOrder) -> tuple[FailureKind, str, str]:
    """Kind and message of the failure, and the log until then."""
    log: list[str] = []
    try:
        async for progress in builder.build(wanted):
            log.append(progress.message)  # noqa: PERF401 - what came before the failure counts
    except BuildFailed as error:
        return error.kind, str(error), "".join(log)
    raise AssertionError("the build did not fail")


def run_in(engine: Engine, image: ImageName, *command: str) -> str:
    return podman(engine, "run", "--rm", "--network=none", str(image), *command)


def has_image(engine: Engine, image: ImageName) -> bool:
    return bool(podman(engine, "images", "--quiet", str(image)))


def nothing_is_left(builder: LocalBuilder, engine: Engine, tmp_path: Path) -> None:
    assert list((tmp_path / "work").iterdir()) == []
    assert podman(engine, "ps", "--all", "--external", "--quiet") == ""
    marker = f"TMPDIR={tmp_path / 'work'}".encode()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            assert marker not in Path(f"/proc/{process.pid}/environ").read_bytes(), process


class TestWhatIsBuilt:
    async def test_phases_log_and_image(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, tmp_path: Path
    ) -> None:
        course.push(
            {
                "requirements.txt": "six==1.17.0\n",
                "binder-data/x.txt": "data\n",
                "postBuild": f"{SCRIPT}echo 'from postBuild: größer'; touch made-by-postbuild\n",
                "start": f'{SCRIPT}export FROM_START=yes\nexec "$@"\n',
            }
        )
        wanted = order(course)
        progress = await said(builder, wanted)
        phases = [phase for phase, _ in progress]
        assert list(dict.fromkeys(phases)) == [Phase.FETCHING, Phase.BUILDING]
        assert all(message.endswith("\n") for _, message in progress)
        assert "from postBuild: größer\n" in "".join(message for _, message in progress)
        shown = run_in(engine, wanted.image, "sh", "-c", "id -u; pwd; ls; echo $FROM_START; python -c 'import six'")
        assert shown.split()[:2] == ["1000", "/home/jovyan"]
        assert {"README.md", "binder-data", "made-by-postbuild", "yes"} <= set(shown.split())
        assert run_in(engine, wanted.image, "jupyter-lab", "--version")
        labels = podman(engine, "inspect", "--format", "{{json .Config.Labels}}", str(wanted.image))
        assert wanted.revision in labels
        nothing_is_left(builder, engine, tmp_path)

    async def test_a_commit_that_changed_content_reuses_the_requirements_layer(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository
    ) -> None:
        course.push({"requirements.txt": "six==1.17.0\n"})
        await said(builder, order(course))
        course.push({"README.md": "changed"})
        wanted = order(course)
        log = "".join(message for _, message in await said(builder, wanted))
        assert "Using cache" in log.partition("pip install")[2].partition("STEP")[0]
        assert run_in(engine, wanted.image, "cat", "README.md") == "changed"

    async def test_the_commit_that_was_ordered_is_built_not_the_newest(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository
    ) -> None:
        old = course.head()
        course.push({"README.md": "newer"})
        wanted = order(course, revision=old)
        await said(builder, wanted)
        assert run_in(engine, wanted.image, "cat", "README.md") == "hello"

    async def test_a_dockerfile_is_built_with_the_auto_pack(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, base_image: str
    ) -> None:
        course.push({"binder/Dockerfile": f"FROM {base_image}\nRUN echo made > /made\n"})
        wanted = order(course, build_pack="auto")
        await said(builder, wanted)
        assert run_in(engine, wanted.image, "cat", "/made") == "made"


class TestIsolation:
    async def test_steps_see_no_secret_of_ours_and_no_host(
        self, builder: LocalBuilder, course: GitRepository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PREBINDER_SECRET", "hunter2")
        course.push({"postBuild": f"{SCRIPT}env; id -u; grep CapEff /proc/self/status; cat /proc/net/route\n"})
        log = "".join(message for _, message in await said(builder, order(course)))
        assert "hunter2" not in log
        assert "CapEff:\t0000000000000000" in log
        assert Path("/proc/net/route").read_text().splitlines()[1] not in log

    @pytest.mark.parametrize("name", ["apt.txt", "binder", "Dockerfile"])
    async def test_a_link_out_of_the_repository_shows_nothing_of_this_machine(
        self, builder: LocalBuilder, course: GitRepository, tmp_path: Path, name: str
    ) -> None:
        secret = tmp_path / "host-secret"
        secret.mkdir()
        (secret / "apt.txt").write_text("Hunter2 is the secret\n")
        course.work.joinpath(name).symlink_to(secret if name == "binder" else secret / "apt.txt")
        course.push({"x": "y"})
        kind, message, log = await failure(builder, order(course))
        assert kind is FailureKind.REPOSITORY
        assert message == f"{name} is a link that leads out of the repository."
        assert "Hunter2" not in log


class TestFailures:
    async def test_a_step_that_fails_is_named_with_its_last_error(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, tmp_path: Path
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo before; echo 'error: no such data' >&2; exit 3\n"})
        wanted = order(course)
        kind, message, log = await failure(builder, wanted)
        assert kind is FailureKind.REPOSITORY
        assert message == 'The step "RUN chmod +x postBuild && ./postBuild" failed: error: no such data'
        assert "before\n" in log
        assert not has_image(engine, wanted.image)
        nothing_is_left(builder, engine, tmp_path)

    async def test_a_commit_that_is_not_there(self, builder: LocalBuilder, course: GitRepository) -> None:
        kind, message, _ = await failure(builder, order(course, revision="a" * 40))
        assert kind is FailureKind.NOT_FOUND
        assert "has no commit aaaa" in message

    async def test_a_repository_that_is_not_there(self, builder: LocalBuilder, course: GitRepository) -> None:
        kind, _, _ = await failure(builder, order(course, clone_url=course.url.replace("course", "none")))
        assert kind is FailureKind.NOT_FOUND

    async def test_a_git_host_that_is_away(self, builder: LocalBuilder, course: GitRepository) -> None:
        kind, message, _ = await failure(builder, order(course, clone_url="http://127.0.0.1:1/course.git"))
        assert kind is FailureKind.GIT_HOST
        assert "127.0.0.1" in message

    @pytest.mark.parametrize("url", ["ext::sh -c touch% /tmp/pwned", "file:///etc", "/etc", "--upload-pack=x"])
    async def test_urls_that_are_no_network_address_are_not_fetched(
        self, builder: LocalBuilder, course: GitRepository, url: str
    ) -> None:
        kind, _, _ = await failure(builder, order(course, clone_url=url))
        assert kind is FailureKind.UNSUPPORTED

    async def test_a_submodule_on_this_machine_is_not_fetched(
        self, builder: LocalBuilder, course: GitRepository, tmp_path: Path
    ) -> None:
        inner = tmp_path / "inner"
        run = {"check": True, "capture_output": True}
        subprocess.run(["git", "init", "-q", inner], **run)
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
            cwd=inner,
            **run,
        )
        add = ["git", "-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(inner), "sub"]
        subprocess.run(add, cwd=course.work, **run)
        course.push({"x": "y"})
        kind, message, _ = await failure(builder, order(course))
        assert kind is FailureKind.REPOSITORY
        assert "sub" in message

    async def test_conda_with_the_pip_pack_is_said(self, builder: LocalBuilder, course: GitRepository) -> None:
        course.push({"environment.yml": "dependencies: [python]\n"})
        kind, message, _ = await failure(builder, order(course))
        assert kind is FailureKind.UNSUPPORTED
        assert "needs conda" in message

    async def test_a_base_image_whose_registry_is_away(self, builder: LocalBuilder, course: GitRepository) -> None:
        course.push({"Dockerfile": "FROM nothing.invalid/base:1\n"})
        kind, message, _ = await failure(builder, order(course))
        assert kind is FailureKind.UNSUPPORTED
        assert "nothing.invalid/base:1 cannot be pulled" in message


class TestLimits:
    @pytest.mark.parametrize(
        ("script", "limit", "kind"),
        [
            ("sleep 1000", {"time_limit": 15.0}, FailureKind.TIMEOUT),
            ("yes", {"log_limit": 100_000}, FailureKind.LOG_FLOOD),
            ("yes | tr -d '\\n'", {"log_limit": 100_000}, FailureKind.LOG_FLOOD),
            (
                "dd if=/dev/zero of=big bs=1M count=300; sleep 1000",
                {"disk_limit": 200 * 10**6},
                FailureKind.DISK,
            ),
            ("python -c 'len(b\"x\" * 10**9)'", {"memory_limit": 200 * 10**6}, FailureKind.MEMORY),
        ],
        ids=["time", "log", "log-without-lines", "disk", "memory"],
    )
    async def test_a_build_over_a_limit_ends_wholly_with_its_kind(
        self,
        builder: LocalBuilder,
        engine: Engine,
        course: GitRepository,
        tmp_path: Path,
        script: str,
        limit: dict[str, Any],
        kind: FailureKind,
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo begins\n{script}\n"})
        wanted = order(course, **limit)
        ended, message, log = await failure(builder, wanted)
        assert ended is kind, message
        assert "begins\n" in log
        assert len(log) < wanted.log_limit + 1000
        assert not has_image(engine, wanted.image)
        nothing_is_left(builder, engine, tmp_path)

    async def test_a_step_cannot_hide_from_the_limits_by_the_names_of_its_mounts(
        self, builder: LocalBuilder, course: GitRepository
    ) -> None:
        mount = 'd=$(printf "/tmp/q/\\377"); mkdir -p "$d"; mount -t tmpfs none "$d"; echo begins; sleep 1000'
        course.push({"postBuild": f"{SCRIPT}unshare --user --map-root-user --mount sh -c '{mount}'\n"})
        kind, message, log = await failure(builder, order(course, time_limit=20.0))
        assert "begins\n" in log
        assert kind is FailureKind.TIMEOUT, message

    async def test_a_build_is_not_blamed_for_its_neighbours_disk(
        self, builder: LocalBuilder, git_server: GitServer
    ) -> None:
        greedy = git_server.create("greedy", {"postBuild": f"{SCRIPT}dd if=/dev/zero of=b bs=1M count=300; sleep 1000"})
        modest = git_server.create("modest", {"postBuild": f"{SCRIPT}sleep 3\n"})
        (kind, _, _), _ = await asyncio.gather(
            failure(builder, order(greedy, disk_limit=200 * 10**6)),
            said(builder, order(modest, disk_limit=200 * 10**6)),
        )
        assert kind is FailureKind.DISK


async def reach(builder: LocalBuilder, wanted: BuildOrder, text: str) -> Any:
    """The running build, once its log holds `text`."""
    running = builder.build(wanted)
    async for progress in running:
        if text in progress.message and "STEP" not in progress.message:
            return running
    raise AssertionError(f"never said {text}")


class TestEndings:
    async def test_closing_the_iterator_cancels(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, tmp_path: Path
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo begins; sleep 1000\n"})
        wanted = order(course)
        running = await reach(builder, wanted, "begins")
        await running.aclose()
        assert not has_image(engine, wanted.image)
        nothing_is_left(builder, engine, tmp_path)

    async def test_a_build_whose_process_is_killed_from_outside_leaves_nothing(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, tmp_path: Path
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo begins; sleep 1000\n"})
        wanted = order(course)
        running = await reach(builder, wanted, "begins")
        (process,) = [p for p in psutil.Process().children() if wanted.id in " ".join(p.cmdline())]
        process.kill()
        with pytest.raises(BuildFailed):
            async for _ in running:
                pass
        nothing_is_left(builder, engine, tmp_path)

    async def test_cancelling_the_task_cancels(
        self, builder: LocalBuilder, engine: Engine, course: GitRepository, tmp_path: Path
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo begins; sleep 1000\n"})
        seen = asyncio.Event()

        async def consume() -> None:
            async for progress in builder.build(order(course)):
                if "begins" in progress.message:
                    seen.set()

        task = asyncio.create_task(consume())
        async with asyncio.timeout(60):
            await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(20):
            while builder._running:
                await asyncio.sleep(0.05)
        nothing_is_left(builder, engine, tmp_path)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    async def test_the_death_of_the_controller_ends_its_builds(
        self,
        builder: LocalBuilder,
        engine: Engine,
        base_image: str,
        course: GitRepository,
        tmp_path: Path,
        number: signal.Signals,
    ) -> None:
        course.push({"postBuild": f"{SCRIPT}echo begins; sleep 1000\n"})
        wanted = order(course)
        code = f"""
import asyncio, json, sys
from pathlib import Path
from prebinder.builders.base import BuildOrder
from prebinder.builders.engine import Engine
from prebinder.builders.local import LocalBuilder
from prebinder.model.images import ImageName
from prebinder.model.spec import git_url

async def main():
    storage = Path({str(engine.storage)!r})
    engine = Engine("podman", {dict(engine.environment)!r}, Path({str(engine.socket)!r}), storage=storage)
    builder = LocalBuilder(engine, Path({str(tmp_path / "work")!r}), pip_base_image={base_image!r})
    order = BuildOrder({wanted.id!r}, git_url({course.url!r}), {course.url!r}, {wanted.revision!r}, "main",
        ImageName({wanted.image.name!r}, {wanted.revision!r}), "pip", None, False, 100.0, 10**9, 10**6, 10**9)
    async for progress in builder.build(order):
        print(progress.message, flush=True)

asyncio.run(main())
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as controller:
            assert controller.stdout is not None
            assert any("begins" in line and "STEP" not in line for line in controller.stdout)
            os.kill(controller.pid, number)
        marker = f"TMPDIR={tmp_path / 'work'}".encode()

        def alive() -> list[int]:
            found = []
            for process in psutil.process_iter():
                with contextlib.suppress(OSError):
                    if marker in Path(f"/proc/{process.pid}/environ").read_bytes():
                        found.append(process.pid)
            return found

        async with asyncio.timeout(20):
            while alive():
                await asyncio.sleep(0.05)
        assert not has_image(engine, wanted.image)
        await builder.adopt()
        nothing_is_left(builder, engine, tmp_path)
        course.push({"postBuild": SCRIPT})
        again = order(course)
        await said(builder, again)
        assert has_image(engine, again.image)

    async def test_adopt_clears_old_work_folders(self, builder: LocalBuilder, tmp_path: Path) -> None:
        (tmp_path / "work" / "b1" / "checkout").mkdir(parents=True)
        await builder.adopt()
        assert list((tmp_path / "work").iterdir()) == []

    async def test_health(self, builder: LocalBuilder, engine: Engine, tmp_path: Path) -> None:
        await builder.health()
        missing = {**engine.environment, "CONTAINERS_STORAGE_CONF": str(tmp_path / "none")}
        broken = LocalBuilder(Engine("podman", missing, engine.socket), tmp_path / "work")
        with pytest.raises(EngineError):
            await broken.health()


class TestPush:
    async def pushed(self, builder: Callable[..., LocalBuilder], registry: Registry, course: GitRepository) -> str:
        name = ImageName(f"{registry.host}/binder/course", course.head())
        progress = await said(builder(), order(course, image=name, push=True))
        assert list(dict.fromkeys(phase for phase, _ in progress)) == [Phase.FETCHING, Phase.BUILDING, Phase.PUSHING]
        return "".join(message for _, message in progress)

    async def test_to_an_open_registry(
        self, engine: Engine, base_image: str, registry: Registry, course: GitRepository, tmp_path: Path
    ) -> None:
        config = RegistryConfig(prefix=f"{registry.host}/binder/", insecure=True)
        await self.pushed(
            lambda: LocalBuilder(engine, tmp_path / "work", registry=config, pip_base_image=base_image),
            registry,
            course,
        )
        store = OCIRegistry(config)
        assert await store.digest(ImageName(f"{registry.host}/binder/course", course.head()))
        await store.aclose()

    async def test_with_credentials_that_no_step_sees(
        self, engine: Engine, base_image: str, course: GitRepository, tmp_path: Path
    ) -> None:
        from tests.controller.registry.test_oci import BASIC, credentials

        (tmp_path / "htpasswd").write_text(HTPASSWD)
        course.push({"postBuild": f"{SCRIPT}env; cat /proc/1/environ; ls -laR /run /tmp 2>/dev/null; mount\n"})
        auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
        with running_registry(tmp_path / "closed", auth, BASIC) as closed:
            file = credentials(tmp_path, closed.host)
            config = RegistryConfig(prefix=f"{closed.host}/binder/", insecure=True, credentials=file)
            log = await self.pushed(
                lambda: LocalBuilder(engine, tmp_path / "work", registry=config, pip_base_image=base_image),
                closed,
                course,
            )
            assert str(file) not in log
            assert "secret" not in log

            wrong = credentials(tmp_path, closed.host, password="wrong")
            config = RegistryConfig(prefix=f"{closed.host}/binder/", insecure=True, credentials=wrong)
            refused = LocalBuilder(engine, tmp_path / "work", registry=config, pip_base_image=base_image)
            name = ImageName(f"{closed.host}/binder/other", course.head())
            kind, message, _ = await failure(refused, order(course, image=name, push=True))
        assert kind is FailureKind.REGISTRY
        assert "refuses our credentials" in message
        assert "wrong" not in message

    async def test_a_registry_that_is_away(
        self, engine: Engine, base_image: str, course: GitRepository, tmp_path: Path
    ) -> None:
        config = RegistryConfig(prefix="127.0.0.1:1/binder/", insecure=True)
        builder = LocalBuilder(engine, tmp_path / "work", registry=config, pip_base_image=base_image)
        name = ImageName("127.0.0.1:1/binder/course", course.head())
        kind, message, _ = await failure(builder, order(course, image=name, push=True))
        assert kind is FailureKind.REGISTRY
        assert "could not be pushed" in message
