"""The whole Hub side for real: JupyterHub, proxy, a real container engine, real Jupyter in a real image."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from prebinder.builders.engine import Engine
from prebinder.config.models import HubConfig
from prebinder.onemachine.hub import HubProcess, install_proxy
from prebinder_site.hub import JupyterHub, Server, SpawnFailed
from tests.support.engine import base_image, engine, podman
from tests.support.hub import proxy_folder

__all__ = ["base_image", "engine"]

pytestmark = [pytest.mark.hub, pytest.mark.engine, pytest.mark.xdist_group("engine")]


@pytest.fixture
async def hub(engine: Engine, base_image: str) -> AsyncIterator[HubProcess]:
    with tempfile.TemporaryDirectory(prefix="pb-hub-") as folder:
        process = HubProcess(
            Path(folder),
            HubConfig(),
            engine,
            await install_proxy(proxy_folder()),
            secret=lambda _: secrets.token_hex(32),
            image_prefix="localhost/prebinder",
        )
        await process.start()
        try:
            yield process
        finally:
            await process.stop()
            for container in podman(engine, "ps", "-aq", "--filter", "label=prebinder.role=server").split():
                podman(engine, "rm", "-f", "-t", "0", container)


async def launched(client: JupyterHub, image: str) -> Server:
    steps = [s async for s in client.launch(image, "https://git.test/ada/course", {})]
    assert isinstance(steps[-1], Server)
    return steps[-1]


async def test_real_jupyter_opens_with_the_token_and_runs_apart_from_everything(
    hub: HubProcess, engine: Engine, base_image: str
) -> None:
    client = JupyterHub(hub.api_url, hub.public_url, hub.token, start_timeout=60)
    server = await launched(client, base_image)
    async with httpx.AsyncClient(timeout=30) as browser:
        lab = await browser.get(f"{server.url}lab", params={"token": server.token}, follow_redirects=True)
        assert lab.status_code == 200
        assert "JupyterLab" in lab.text
        async with httpx.AsyncClient(timeout=30) as stranger:
            assert (await stranger.get(f"{server.url}api/contents")).status_code == 403
        # A page of another site may talk to the server (thebe, MyST).
        status = await browser.get(
            f"{server.url}api/status", params={"token": server.token}, headers={"Origin": "https://book.test"}
        )
        assert status.headers["access-control-allow-origin"] in ("*", "https://book.test")

    container = podman(engine, "ps", "-q", "--filter", "label=prebinder.role=server")
    facts = json.loads(podman(engine, "inspect", container))[0]
    assert facts["EffectiveCaps"] in (None, [])
    assert facts["HostConfig"]["Privileged"] is False
    assert "no-new-privileges" in facts["HostConfig"]["SecurityOpt"]
    assert facts["HostConfig"]["PidsLimit"] > 0
    assert facts["HostConfig"]["Memory"] == HubConfig().memory
    assert facts["Mounts"] == []
    assert podman(engine, "exec", container, "id", "-u") == "1000"
    environment = podman(engine, "exec", container, "env")
    assert "JUPYTERHUB_API_TOKEN" not in environment
    # Neither the Hub nor the proxy's own API can be reached from inside, by no address of this machine.
    gateway = facts["NetworkSettings"]["Networks"][engine.network]["Gateway"]
    ports = [httpx.URL(hub.api_url).port, httpx.URL(hub.public_url).port]
    script = (
        "import socket,sys\n"
        f"for host in ('127.0.0.1', {gateway!r}):\n"
        f"    for port in {ports!r}:\n"
        "        s = socket.socket(); s.settimeout(2)\n"
        "        assert s.connect_ex((host, port)) != 0, (host, port)\n"
        "print('alone')\n"
    )
    assert podman(engine, "exec", container, "python3", "-c", script) == "alone"

    # Stopping through the Hub removes the container.
    async with httpx.AsyncClient(timeout=30) as api:
        name = server.url.rstrip("/").rsplit("/", 1)[-1]
        await api.delete(
            f"{hub.api_url}users/{name}", headers={"Authorization": f"token {hub.token.get_secret_value()}"}
        )
        async with asyncio.timeout(30):
            while podman(engine, "ps", "-aq", "--filter", "label=prebinder.role=server"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    await client.aclose()


async def test_a_missing_image_fails_at_once_and_is_never_pulled(hub: HubProcess) -> None:
    client = JupyterHub(hub.api_url, hub.public_url, hub.token, start_timeout=60)
    began = asyncio.get_running_loop().time()
    with pytest.raises(SpawnFailed):
        await launched(client, "localhost/prebinder-nothing:0")
    assert asyncio.get_running_loop().time() - began < 10
    await client.aclose()
