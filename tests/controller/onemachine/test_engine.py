"""The engine of one instance: apart from other instances, with a network that works, and wholly gone afterwards."""

# What is waited for here are other processes, which set no event of ours; and tests may block their own loop.
# ruff: noqa: ASYNC221

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from prebinder.builders.engine import Engine, attempt, call
from prebinder.model.failure import EngineError
from prebinder.onemachine.base_image import ensure_base_image, recipe_key
from prebinder.onemachine.engine import answers, clear_leftovers, install_packages, start_engine
from prebinder.onemachine.leftovers import mounts_below, processes_of, rule_removals
from prebinder.onemachine.place import Place
from tests.support.engine import CACHE, base_image, engine, podman

__all__ = ["base_image", "engine"]


@pytest.fixture
def state() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pb-state-"))
    yield folder
    shutil.rmtree(folder)


def interface(engine: Engine) -> str:
    return json.loads(podman(engine, "network", "inspect", engine.network))[0]["network_interface"]


def subnet(engine: Engine) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(
        json.loads(podman(engine, "network", "inspect", engine.network))[0]["subnets"][0]["subnet"]
    )


def kill_service(engine: Engine) -> None:
    (service,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"unix://{engine.socket}" in (process.info["cmdline"] or [])
    ]
    service.kill()
    service.wait(10)


async def until_it_answers(engine: Engine) -> None:
    async with asyncio.timeout(90):
        while not await answers(engine.socket):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def nothing_is_left(state: Path, bridge: str, network: ipaddress.IPv4Network) -> None:
    assert processes_of(state, str(state)) == []
    assert mounts_below(state) == []
    assert not Path("/sys/class/net", bridge).exists()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout
    assert str(network.network_address).removesuffix(".0") + "." not in rules


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
class TestPodman:
    async def test_containers_reach_package_indexes_and_names(self, engine: Engine, base_image: str) -> None:
        code = "import urllib.request as u; print(u.urlopen('https://pypi.org/simple/pip/', timeout=30).status)"
        assert podman(engine, "run", "--rm", base_image, "python3", "-c", code) == "200"

    async def test_the_socket_answers_as_docker_does(self, engine: Engine) -> None:
        assert await answers(engine.socket)
        assert len(os.fsencode(engine.socket)) < 100

    async def test_the_base_image_is_ready_for_builds(self, engine: Engine, base_image: str) -> None:
        said: list[str] = []
        assert await ensure_base_image(engine, CACHE, said.append) == base_image
        assert said == []
        shown = podman(
            engine, "run", "--rm", "--network=none", base_image, "sh", "-c", "id -u jovyan; which jupyter-lab git"
        )
        assert shown.split() == ["1000", "/srv/venv/bin/jupyter-lab", "/usr/bin/git"]

    async def test_two_instances_do_not_meet_and_leave_nothing(
        self, engine: Engine, base_image: str, state: Path
    ) -> None:
        async with start_engine(state, "podman") as other:
            assert podman(other, "images", "--quiet") == ""
            assert interface(other) != interface(engine)
            assert not subnet(other).overlaps(subnet(engine))
            await ensure_base_image(other, CACHE, lambda _: None)
            podman(other, "run", "--detach", "--publish=127.0.0.1::80", base_image, "sleep", "1000")
            assert Path("/sys/class/net", interface(other)).exists()
            bridge, network = interface(other), subnet(other)
            mine = podman(engine, "run", "--detach", base_image, "sleep", "1000")
        nothing_is_left(state, bridge, network)
        assert podman(engine, "ps", "--quiet", "--no-trunc") == mine
        podman(engine, "rm", "--force", "--time=0", mine)

    async def test_after_kill_9_everything_is_cleared_and_images_stay(self, base_image: str, state: Path) -> None:
        code = f"""
import asyncio, os, signal
from pathlib import Path
from prebinder.builders.engine import call
from prebinder.onemachine.base_image import ensure_base_image
from prebinder.onemachine.engine import start_engine

async def main():
    async with start_engine(Path({str(state)!r}), "podman") as engine:
        image = await ensure_base_image(engine, Path({str(CACHE)!r}), print)
        await call(engine, "run", "--detach", "--publish=127.0.0.1::80", image, "sleep", "1000")
        context = Path({str(state)!r}) / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM {{image}}\\nRUN touch /begun; sleep 1001\\n")
        build = asyncio.create_task(call(engine, "build", context, timeout=1000))
        while "\\nsleep 1001\\n" not in (await asyncio.to_thread(os.popen, "ps axo args")).read():
            await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert processes_of(state, str(state)) != []
        await clear_leftovers(state)
        place = Place.of(state)
        nothing_is_left(state, place.interface, ipaddress.IPv4Network(place.subnet_file.read_text()))
        async with start_engine(state, "podman") as again:
            assert podman(again, "images", "--quiet", base_image)
            assert podman(again, "ps", "--all", "--external", "--quiet") == ""

    async def test_the_service_comes_back_when_it_ends(self, engine: Engine) -> None:
        kill_service(engine)
        await until_it_answers(engine)

    async def test_the_service_comes_back_also_when_it_could_not_be_started_again_at_once(self, engine: Engine) -> None:
        storage = Path(engine.environment["CONTAINERS_STORAGE_CONF"])
        away = storage.with_suffix(".away")
        storage.rename(away)
        try:
            with structlog.testing.capture_logs() as said:
                kill_service(engine)
                async with asyncio.timeout(60):
                    while not any(entry["event"] == "engine.service_not_started" for entry in said):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
        finally:
            away.rename(storage)
        await until_it_answers(engine)


async def test_without_any_engine_the_line_to_run_is_said(
    state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineError, match=r"No container engine is usable.*apt-get install"):
        async with start_engine(state):
            pass
    with pytest.raises(EngineError, match=r"docker does not answer.*builder\.engine: podman"):
        async with start_engine(state, "docker"):
            pass
    with pytest.raises(EngineError, match="Install it with your system's package tool"):
        await install_packages(("podman",), "container engine", lambda _: None)


async def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(EngineError, match="did not end within"):
        await attempt(["sleep", "1000"], dict(os.environ), 0.2)


async def test_a_missing_program_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="podman cannot be started"):
        await call(Engine("podman", {"PATH": str(tmp_path)}, tmp_path / "x"), "version")


SAVED = """\
*nat
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
-A POSTROUTING -s 10.1.2.0/24 -j NETAVARK-AAAA
-A POSTROUTING -s 10.1.20.0/24 -j NETAVARK-BBBB
-A NETAVARK-AAAA -d 10.1.2.0/24 -j ACCEPT
-A NETAVARK-AAAA ! -d 224.0.0.0/4 -j MASQUERADE
-A NETAVARK-BBBB -d 10.1.20.0/24 -j ACCEPT
-A NETAVARK-DN-AAAA -d 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.2.3:80
-A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment "dnat name: a b" -j NETAVARK-DN-AAAA
-A NETAVARK-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
"""


def test_only_the_rules_of_the_own_subnet_are_removed() -> None:
    assert rule_removals(SAVED, "10.1.2.0/24") == [
        ["-D", "POSTROUTING", "-s", "10.1.2.0/24", "-j", "NETAVARK-AAAA"],
        [
            *("-D", "NETAVARK-HOSTPORT-DNAT", "-p", "tcp", "-m", "tcp", "--dport", "8080"),
            *("-m", "comment", "--comment", "dnat name: a b", "-j", "NETAVARK-DN-AAAA"),
        ],
        ["-F", "NETAVARK-AAAA"],
        ["-X", "NETAVARK-AAAA"],
        ["-F", "NETAVARK-DN-AAAA"],
        ["-X", "NETAVARK-DN-AAAA"],
    ]
    assert rule_removals(SAVED, "10.9.9.0/24") == []


def test_the_base_images_name_changes_with_the_certificates() -> None:
    keys = {recipe_key({}), recipe_key({"a.crt": b"1"}), recipe_key({"a.crt": b"2"}), recipe_key({"b.crt": b"1"})}
    assert len(keys) == 4
    assert recipe_key({"a.crt": b"1"}) == recipe_key({"a.crt": b"1"})
