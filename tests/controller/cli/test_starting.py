"""`prebinder up`, `controller` and `serve` that cannot start: one line with what to do, and nothing left running."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prebinder.config.state import StateFolder
from prebinder.onemachine.exclusive import exclusive
from tests.support.command import Done, prebinder


def refused(done: Done, *words: str) -> None:
    assert done.code == 3, done
    (line,) = done.errors.splitlines()
    for word in words:
        assert word in line
    assert "Traceback" not in done.output


def nothing_runs(folder: Path) -> bool:
    return not any(str(folder) in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


@contextlib.contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prebinder.yaml").write_text(
        "repositories: []\nhub: {url: 'http://127.0.0.1:9', token: {env: HUB_TOKEN}}\nsite: {port: 0}\n"
        "controller: {port: 0}\n"
    )
    return tmp_path


COMMANDS = ["up", "controller", "serve"]


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_taken_port_is_said_with_its_key(command: str, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = (folder / "prebinder.yaml").read_text().replace("port: 0", f"port: {port}")
        (folder / "prebinder.yaml").write_text(text)
        done = await prebinder(command, folder=folder, env={"HUB_TOKEN": "t"})
    refused(done, f"Port {port} on 127.0.0.1", "controller.port" if command == "controller" else "site.port")
    assert nothing_runs(folder)


@pytest.mark.parametrize("command", ["up", "controller"])
async def test_a_second_one_on_the_same_folder_is_refused(command: str, folder: Path) -> None:
    state = StateFolder(folder / ".prebinder")
    state.create()
    with exclusive(state):
        done = await prebinder(command, folder=folder, env={"HUB_TOKEN": "t"})
    refused(done, "runs already", str(os.getpid()), "--state")


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_folder_that_cannot_be_made_is_said(command: str, folder: Path) -> None:
    (folder / "file").write_text("")
    done = await prebinder(command, "--state", "file/state", folder=folder, env={"HUB_TOKEN": "t"})
    refused(done, f"The state folder {folder}/file/state cannot be used: Not a directory", "--state")


async def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    with tmpfs(folder / "disk", "size=1m,ro") as disk:
        done = await prebinder("up", "--state", str(disk / "state"), folder=folder, env={"HUB_TOKEN": "t"})
    refused(done, "cannot be used: Read-only file system")


@pytest.mark.parametrize("command", ["up", "controller"])
@pytest.mark.parametrize("filled", [False, True], ids=["small", "full"])
async def test_a_full_disk_is_said(command: str, filled: bool, folder: Path) -> None:
    """An endpoint needs no room: clicks are answered from memory."""
    with tmpfs(folder / "disk", "size=2m") as disk:
        if filled:
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        done = await prebinder(command, "--state", str(disk / "state"), folder=folder, env={"HUB_TOKEN": "t"})
        assert nothing_runs(disk)
    refused(done, f"The disk that holds {disk}/state is full", "--state")


async def test_without_an_engine_the_way_to_one_is_said(folder: Path) -> None:
    """With a PATH on which nothing is: also no way to install one."""
    environment = {"PATH": str(folder / "empty"), "DOCKER_HOST": f"unix://{folder}/none.sock", "HUB_TOKEN": "t"}
    refused(await prebinder("up", folder=folder, env=environment), "podman", "Install it")
    refused(await prebinder("controller", folder=folder, env=environment), "No container engine is usable", "apt-get")
    assert nothing_runs(folder)


async def test_a_path_too_long_for_a_socket_does_not_matter_to_those_who_ask(folder: Path) -> None:
    state = StateFolder(folder / ("long" * 30))
    assert len(os.fsencode(state.controller_socket)) < 100
    done = await prebinder("status", "--state", str(state.root), folder=folder)
    refused(done, "No Prebinder runs with the state folder", "prebinder up")


async def test_a_ledger_that_is_none_is_said(folder: Path) -> None:
    state = StateFolder(folder / ".prebinder")
    state.create()
    state.ledger.write_bytes(b"this is no database" * 100)
    environment = {"HUB_TOKEN": "t"}
    if os.geteuid() != 0:
        pytest.skip("needs root to run containers with a network of their own")
    done = await prebinder("controller", folder=folder, env=environment)
    assert done.code == 3
    last = done.errors.splitlines()[-1]
    assert last.startswith("prebinder: The ledger ")
    assert last.endswith(f"{state.ledger} cannot be opened: file is not a database.")
    assert "Traceback" not in done.errors
    assert nothing_runs(folder)


async def test_an_endpoint_without_a_hub_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "prebinder.yaml").write_text("site: {port: 0}\n")
    done = await prebinder("serve", folder=tmp_path)
    assert done.code == 2
    assert done.errors == (
        "prebinder: hub.url and hub.token are needed: the launch endpoint hands off to that JupyterHub.\n"
    )


async def test_a_controller_for_others_without_a_token_says_so(tmp_path: Path) -> None:
    (tmp_path / "prebinder.yaml").write_text("controller: {port: 0, address: 0.0.0.0}\n")
    done = await prebinder("controller", folder=tmp_path)
    assert done.code == 2
    assert "controller.token is needed" in done.errors
    assert len(done.errors.splitlines()) == 1
