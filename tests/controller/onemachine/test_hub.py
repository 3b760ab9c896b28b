"""JupyterHub on one machine, for real: launches, refusals, culling, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from prebinder.model.failure import HubError
from prebinder.onemachine.hub import HubProcess
from prebinder_site.hub import HubBusy, JupyterHub, Progress, Server, SpawnFailed
from tests.support.hub import PREFIX, ROOT, real_hub

pytestmark = [pytest.mark.hub]


def client_of(hub: HubProcess) -> JupyterHub:
    return JupyterHub(hub.api_url, hub.public_url, hub.token, start_timeout=30)


async def launched(client: JupyterHub, image: str = f"{PREFIX}good:1") -> tuple[Server, list[str]]:
    steps = [s async for s in client.launch(image, "https://git.test/Ada/Course.git", {"binder_request": "v2/x"})]
    assert isinstance(steps[-1], Server)
    return steps[-1], [s.message for s in steps if isinstance(s, Progress)]


async def test_a_launch_gives_a_server_that_its_token_opens(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub, httpx.AsyncClient(timeout=30) as browser:
        client = client_of(hub)
        server, messages = await launched(client)
        assert messages
        assert server.url.startswith(f"{hub.public_url}user/ada-course-")
        assert (await browser.get(server.url)).status_code == 403
        answer = await browser.get(server.url, params={"token": server.token})
        assert answer.status_code == 200
        environment = answer.json()["environment"]
        assert environment["BINDER_REQUEST"] == "v2/x"
        assert environment["BINDER_REPO_URL"] == "https://git.test/Ada/Course.git"
        assert not {"JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN"} & environment.keys()
        await client.aclose()


async def test_a_server_that_does_not_start_is_told_with_its_cause_and_leaves_no_user(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub:
        client = client_of(hub)
        with pytest.raises(SpawnFailed, match="did not start the server"):
            await launched(client, f"{PREFIX}missing:1")
        async with asyncio.timeout(30):
            while await users(hub):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await client.aclose()


async def test_an_image_from_elsewhere_is_refused_by_the_hub_too(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub:
        client = client_of(hub)
        with pytest.raises(SpawnFailed, match="Only images whose name begins with"):
            await launched(client, "docker.io/evil/image:1")
        await client.aclose()


async def test_the_limit_of_servers_is_said_clearly(tmp_path: Path) -> None:
    async with real_hub(tmp_path, max_servers=1) as hub:
        client = client_of(hub)
        await launched(client)
        with pytest.raises(HubBusy, match="takes no more servers") as refused:
            await launched(client)
        assert refused.value.retry_after is None
        await client.aclose()


async def test_an_unused_server_is_culled_with_its_user_and_a_used_one_stays(tmp_path: Path) -> None:
    async with real_hub(tmp_path, idle=10, every=1) as hub, httpx.AsyncClient(timeout=30) as browser:
        client = client_of(hub)
        await launched(client)
        used, _ = await launched(client)
        async with asyncio.timeout(60):
            while len(await users(hub)) == 2:
                assert (await browser.get(used.url, params={"token": used.token})).status_code == 200
                await asyncio.sleep(0.3)
        assert (await browser.get(used.url, params={"token": used.token})).status_code == 200
        await client.aclose()


async def test_stop_takes_seconds_and_leaves_no_process_and_no_open_port(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub:
        pids = hub.pids
        assert len(pids) == 3
        began = time.monotonic()
        await hub.stop()
        assert time.monotonic() - began < 20
        assert not any(psutil.pid_exists(pid) for pid in pids)
        async with httpx.AsyncClient(timeout=30) as browser:
            with pytest.raises(httpx.ConnectError):
                await browser.get(hub.public_url)


async def test_a_hub_that_dies_is_started_again_and_people_keep_their_servers(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub, httpx.AsyncClient(timeout=30) as browser:
        client = client_of(hub)
        server, _ = await launched(client)
        hub_pid = next(p for p in hub.pids if "jupyterhub" in psutil.Process(p).cmdline())
        psutil.Process(hub_pid).kill()
        # The proxy stands beside the Hub: no gap for the person.
        assert (await browser.get(server.url, params={"token": server.token})).status_code == 200
        async with asyncio.timeout(60):
            while hub_pid in hub.pids or len(hub.pids) < 3 or not await answers(client):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert len(await users(hub)) == 1
        await launched(client)
        await client.aclose()


_STARTS_A_HUB = """
import asyncio, sys
from pathlib import Path
from tests.support.hub import real_hub

async def main():
    async with real_hub(Path(sys.argv[1])) as hub:
        print(hub.public_url, *hub.pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_a_killed_prebinder_left_is_no_obstacle_to_the_next_start(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _STARTS_A_HUB, str(tmp_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            words = b""
            while not words.startswith(b"http"):
                words = await process.stdout.readline()
        url, *left = words.decode().split()
    finally:
        process.kill()
        await process.wait()
    async with real_hub(tmp_path, port=httpx.URL(url).port) as second:
        assert not any(psutil.pid_exists(int(pid)) for pid in left)
        client = client_of(second)
        await launched(client)
        await client.aclose()


async def test_a_taken_port_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HubError, match=rf"Port {port} on 127.0.0.1 is taken\. .*hub\.port"):
            async with real_hub(tmp_path, port=port):
                pass


async def test_secrets_are_readable_by_their_owner_only_and_on_no_command_line(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub:
        folder = tmp_path / "hub"
        for name in ("settings.json", "cookie-secret"):
            assert (folder / name).stat().st_mode & 0o077 == 0
        lines = [" ".join(psutil.Process(p).cmdline()) for p in hub.pids]
        settings = json.loads((folder / "settings.json").read_text())
        for name in ("proxy_token", "prebinder_token", "culler_token"):
            assert not any(settings[name] in line for line in lines)


async def test_the_tokens_may_do_no_more_than_they_need(tmp_path: Path) -> None:
    async with real_hub(tmp_path) as hub, httpx.AsyncClient(base_url=hub.api_url) as api:
        prebinder = {"Authorization": f"token {hub.token.get_secret_value()}"}
        settings = json.loads((tmp_path / "hub" / "settings.json").read_text())
        culler = {"Authorization": f"token {settings['culler_token']}"}
        assert (await api.post("shutdown", headers=prebinder)).status_code == 403
        assert (await api.get("proxy", headers=prebinder)).status_code == 403
        assert (await api.post("users/eve", headers=prebinder)).status_code == 201
        assert (await api.post("users/eve/tokens", headers=prebinder)).status_code in (403, 404)
        assert (await api.post("users/mallory", headers=culler)).status_code == 403
        assert (await api.post("users/eve/server", headers=culler)).status_code in (403, 404)


async def users(hub: HubProcess) -> list[str]:
    settings = json.loads(hub._settings_file.read_text())
    headers = {"Authorization": f"token {settings['culler_token']}"}
    async with httpx.AsyncClient(timeout=30) as api:
        return [u["name"] for u in (await api.get(f"{hub.api_url}users", headers=headers)).json()]


async def answers(client: JupyterHub) -> bool:
    try:
        await client.health()
    except HubError:
        return False
    return True
