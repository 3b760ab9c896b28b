"""BinderHub's own client, from npm, follows our stream: a launch, a refusal, and a build."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from prebinder.model.events import Phase
from prebinder.onemachine.proxy import find_node
from tests.support.endpoint import ABSENT, World, name_of, world

HERE = Path(__file__).parent / "binderhub_client"


@pytest.fixture(scope="session")
def client() -> Path:
    """The folder of the installed client, shared by all runs."""
    files = {name: (HERE / name).read_bytes() for name in ("package.json", "package-lock.json", "follow.mjs")}
    key = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    cache = platformdirs.user_cache_path("prebinder") / "node"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"client-{key}"
    with (cache / "client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            half = Path(tempfile.mkdtemp(dir=cache))
            for name, content in files.items():
                (half / name).write_bytes(content)
            _, npm = find_node()
            command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=half, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                shutil.rmtree(half)
                pytest.fail(f"npm ci: {done.stderr[-1000:]}")
            half.rename(folder)
    return folder


async def follow(client: Path, w: World, spec: str) -> list[dict[str, Any]]:
    node, _ = find_node()
    process = await asyncio.create_subprocess_exec(
        *(str(node), "follow.mjs", w.url, spec),
        cwd=client,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]


async def test_the_client_gets_to_ready(client: Path, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        lines = await follow(client, w, "gh/Ada/Course/HEAD")
    phases = [line["phase"] for line in lines]
    assert (phases[0], phases[1], phases[-1]) == ("built", "launching", "ready")
    assert lines[-1]["url"].startswith("https://hub.test/user/")


async def test_the_client_reads_a_refusal(client: Path, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (line,) = await follow(client, w, "gh/Ada/Course/bad..ref")
    assert (line["phase"], line["status_code"]) == ("failed", 400)


async def test_the_client_follows_a_build(client: Path, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.will_build(ABSENT)
        following = asyncio.create_task(follow(client, w, "gh/Ada/Course/next"))
        await w.until(lambda: w.controller.streams, 60)
        await w.controller.say(Phase.BUILDING, "Step 1\n")
        await w.controller.say(Phase.BUILT, "Built\n", image="registry.test/binder/course@sha256:new")
        lines = await following
    assert {"phase": "building", "message": "Step 1\n"} in lines
    assert next(line["imageName"] for line in lines if line["phase"] == "built") == str(name_of(ABSENT))
    assert lines[-1]["phase"] == "ready"
