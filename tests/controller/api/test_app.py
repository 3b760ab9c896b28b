"""The controller over real HTTP: statuses, bodies, streams and limits as docs/controller-api.md says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
from httpx_sse import aconnect_sse
from pydantic import SecretStr

from prebinder.api.app import WEBHOOK_LIMIT, create_app, create_hooks_app
from prebinder.model.catalogue import Catalogue
from prebinder.model.events import BuildEvent, BuildRecord, BuildState, Phase
from prebinder.model.failure import HostUnavailable
from prebinder.model.messages import BuildReply, ControllerStatus, Problem
from prebinder.model.spec import Provider, Repository, git_url
from tests.support.controller import Running, configured, started, until
from tests.support.memory_host import MemoryHost
from tests.support.scripted_builder import ScriptedBuilder, Shelf
from tests.support.serving import serving

COURSE = git_url("https://memory.invalid/course")
SIGNED = {"x-signed": "yes"}


@pytest.fixture
def host() -> MemoryHost:
    host = MemoryHost()
    host.push(COURSE, "First")
    return host


@asynccontextmanager
async def speaking(
    folder: Path, host: MemoryHost, *, token: str | None = None, builder: ScriptedBuilder | None = None, **limits: int
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    hooks = {"hosts": {"git": {"webhook_secret": {"env": "PATH"}}}}
    configuration = configured([{"git": COURSE.name}], limits=limits, **hooks)
    async with started(folder, configuration, {Provider.GIT: host}, builder=builder) as it:
        app = create_app(it.controller, SecretStr(token) if token else None)
        async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield it, client


def order(repository: Repository = COURSE, ref: str = "main", **fields: object) -> dict[str, object]:
    return {"provider": "git", "spec": f"{quote(repository.name, safe='')}/{ref}", **fields}


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return Problem.model_validate_json(response.content)


async def test_a_click_asks_for_a_build_and_follows_it_from_the_first_line(tmp_path: Path, host: MemoryHost) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with speaking(tmp_path, host, builder=builder) as (_, client):
        reply = BuildReply.model_validate_json((await client.post("/api/builds", json=order())).content)
        assert reply.build is not None
        path = f"/api/builds/{reply.build.id}/events"

        async def follow(after: str | None = None) -> list[BuildEvent]:
            headers = {"last-event-id": after} if after else {}
            async with aconnect_sse(client, "GET", path, headers=headers) as source:
                assert source.response.headers["content-type"].startswith("text/event-stream")
                events = []
                async for sent in source.aiter_sse():
                    event = BuildEvent.model_validate_json(sent.data)
                    assert sent.id == str(event.seq)
                    events.append(event)
                return events

        followers = [asyncio.create_task(follow()) for _ in range(5)]
        await until(lambda: builder.orders)
        builder.release()
        streams = await asyncio.gather(*followers)
        assert all(stream == streams[0] for stream in streams)
        assert [e.seq for e in streams[0]] == list(range(1, len(streams[0]) + 1))
        assert streams[0][-1].phase is Phase.BUILT
        assert await follow("2") == streams[0][2:]
        log = await client.get(f"/api/builds/{reply.build.id}/log")
        assert log.headers["content-type"] == "text/plain; charset=utf-8"
        assert log.headers["x-content-type-options"] == "nosniff"
        assert log.text == "".join(e.message for e in streams[0])
        ready = BuildReply.model_validate_json((await client.post("/api/builds", json=order())).content)
        assert ready.launchable == streams[0][-1].image
        record = BuildRecord.model_validate_json((await client.get(f"/api/builds/{reply.build.id[:5]}")).content)
        assert record.id == reply.build.id
        assert [b["id"] for b in (await client.get("/api/builds?state=ready&limit=5")).json()] == [record.id]
        assert (await client.get("/api/builds?state=failed")).json() == []


async def test_a_follower_who_goes_away_leaves_nothing_behind(tmp_path: Path, host: MemoryHost) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with speaking(tmp_path, host, builder=builder) as (it, client):
        reply = (await client.post("/api/builds", json=order())).json()
        build = reply["build"]["id"]
        async with aconnect_sse(client, "GET", f"/api/builds/{build}/events") as source:
            await anext(source.aiter_sse())
            await until(lambda: it.logs._channels[build].followers == 1)
        await until(lambda: build not in it.logs._channels or not it.logs._channels[build].followers)
        builder.release()


async def test_only_what_came_by_the_name_of_a_branch_or_tag_is_trusted(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host) as (it, client):
        await until(lambda: it.builder.orders)
        assert it.builder.orders[0].trusted
        anybodys = host.push(COURSE, "From a fork", branch="unregistered")
        assert (await client.post("/api/builds", json=order(ref=anybodys))).is_success
        await until(lambda: len(it.builder.orders) == 2)
        assert it.builder.orders[1].revision == anybodys
        assert not it.builder.orders[1].trusted


async def test_the_catalogue_is_sent_once_a_version_and_changes_are_told(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host) as (it, client):
        await until(lambda: it.is_state(host.head(COURSE), "ready"))
        await until(lambda: (e := it.state(host.head(COURSE))) and e.summary)
        # An image is ready a moment before its build is written down as ended, and nothing changes after that.
        await until(lambda: it.catalogue.recent_builds[0].state is BuildState.READY)
        response = await client.get("/api/catalogue")
        catalogue = Catalogue.model_validate_json(response.content)
        assert response.headers["etag"] == f'"{catalogue.version}"'
        again = await client.get("/api/catalogue", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        async with aconnect_sse(client, "GET", "/api/catalogue/events") as source:
            events = source.aiter_sse()
            assert json.loads((await anext(events)).data) == {"version": catalogue.version}
            pushed = host.push(COURSE, "Second")
            hook = await client.post("/hooks/git", content=host.changed(COURSE, revision=pushed), headers=SIGNED)
            assert (hook.status_code, hook.json()) == (202, {"refs": 1})
            told = json.loads((await anext(events)).data)["version"]
            assert told > catalogue.version
        await until(lambda: it.is_state(pushed, "ready"))


async def test_a_webhook_is_refused_as_documented(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host) as (_, client):
        body = host.changed(COURSE)
        problem(await client.post("/hooks/git", content=body), 401)
        problem(await client.post("/hooks/github", content=body, headers=SIGNED), 404)
        problem(await client.post("/hooks/nobody", content=body, headers=SIGNED), 404)
        problem(await client.post("/hooks/git", content=b"x" * (WEBHOOK_LIMIT + 1), headers=SIGNED), 413)
        problem(await client.get("/hooks/git"), 405)


async def test_a_body_without_a_length_is_given_up_while_it_is_read(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host) as (_, client):
        address = urlsplit(str(client.base_url))
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /hooks/git HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        try:
            async with asyncio.timeout(20):
                while not reader._buffer and sent < 10 * WEBHOOK_LIMIT:  # type: ignore[attr-defined]
                    writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    await writer.drain()
                    sent += 65536
                    await asyncio.sleep(0)
                head = await reader.readline()
        except ConnectionError:
            head = await reader.readline()
        writer.close()
        assert b" 413 " in head
        assert sent < 4 * WEBHOOK_LIMIT


async def test_errors_have_a_kind_a_message_and_their_status(tmp_path: Path, host: MemoryHost) -> None:
    stranger = git_url("https://memory.invalid/stranger")
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with speaking(tmp_path, host, builder=builder, parallel=1, queue=1) as (_, client):
        await until(lambda: builder.orders)
        assert problem(await client.post("/api/builds", json=order(stranger)), 403).kind == "refused"
        assert problem(await client.post("/api/builds", json=order(ref="nothing")), 404).kind == "not-found"
        assert problem(await client.post("/api/builds", json=order(ref="../x")), 400).message
        assert "provider" in problem(await client.post("/api/builds", json={}), 400).message
        problem(await client.post("/api/builds", content=b"{" * 1000), 400)
        problem(await client.post("/api/builds", content=b" " * 100_000), 413)
        problem(await client.get("/api/builds/ffffff"), 404)
        problem(await client.get("/api/builds/%2e%2e"), 404)
        problem(await client.get("/api/builds/ffffff/events"), 404)
        problem(await client.get("/api/builds?state=late"), 400)
        problem(await client.get("/nothing"), 404)
        for name in ("one", "two"):
            host.push(COURSE, "Aside", branch=name)
        assert (await client.post("/api/builds", json=order(ref="one"))).status_code == 200
        full = await client.post("/api/builds", json=order(ref="two"))
        assert "limits.queue" in problem(full, 429).message
        assert full.headers["retry-after"] == "30"
        host.away = HostUnavailable("The host asks for a pause.", retry_after=12.3)
        away = await client.post("/api/builds", json=order(ref="two"))
        assert problem(away, 503).kind == "git-host"
        assert away.headers["retry-after"] == "13"
        builder.release()


async def test_a_build_is_cancelled_once(tmp_path: Path, host: MemoryHost) -> None:
    builder = ScriptedBuilder(Shelf(), hold_all=True)
    async with speaking(tmp_path, host, builder=builder) as (it, client):
        await until(lambda: builder.orders)
        build = (await client.get("/api/builds")).json()[0]["id"]
        assert (await client.delete(f"/api/builds/{build}")).status_code == 202
        assert (await it.ended(build)).failure == "cancelled"
        problem(await client.delete(f"/api/builds/{build}"), 409)
        problem(await client.delete("/api/builds/ffffff"), 404)


async def test_with_a_token_the_api_needs_it_and_hooks_and_health_do_not(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host, token="a token of this test") as (_, client):
        for path in ("/api/catalogue", "/api/status", "/api/builds", "/api/nothing"):
            problem(await client.get(path), 401)
            problem(await client.get(path, headers={"authorization": "Bearer wrong"}), 401)
        right = {"authorization": "Bearer a token of this test"}
        assert (await client.get("/api/catalogue", headers=right)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post("/hooks/git", content=host.changed(COURSE), headers=SIGNED)).status_code == 202


async def test_the_public_application_has_webhooks_and_nothing_else(tmp_path: Path, host: MemoryHost) -> None:
    hooks = {"hosts": {"git": {"webhook_secret": {"env": "PATH"}}}}
    async with (
        started(tmp_path, configured([{"git": COURSE.name}], **hooks), {Provider.GIT: host}) as it,
        serving(create_hooks_app(it.controller)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert (await client.post("/hooks/git", content=host.changed(COURSE), headers=SIGNED)).status_code == 202
        for path in ("/api/catalogue", "/api/status", "/health", "/metrics"):
            problem(await client.get(path), 404)


async def test_status_health_metrics_and_launches(tmp_path: Path, host: MemoryHost) -> None:
    async with speaking(tmp_path, host) as (it, client):
        await until(lambda: it.is_state(host.head(COURSE), "ready"))
        status = ControllerStatus.model_validate_json((await client.get("/api/status")).content)
        assert status.health.ok
        assert [r.repository for r in status.repositories] == [str(COURSE)]
        assert status.repositories[0].next_look_at
        launch = {
            "at": "2026-11-23T12:00:00Z",
            "provider": "git",
            "repository": str(COURSE),
            "ref": "main",
            "revision": host.head(COURSE),
            "image": "x",
            "ok": True,
            "seconds": 2.5,
        }
        assert (await client.post("/api/launches", json=[launch, {**launch, "ok": False}])).status_code == 204
        assert await it.ledger.launch_count() == 2
        problem(await client.post("/api/launches", json=[{**launch, "at": "yesterday"}]), 400)
        metrics = (await client.get("/metrics")).text
        assert 'prebinder_builds_total{kind="",status="ready"} 1.0' in metrics
        assert 'prebinder_host_questions_total{provider="git",question="refs",result="ok"} 1.0' in metrics
        assert "prebinder_queued_builds 0.0" in metrics
        it.builder.away = "Podman does not answer."
        it.controller._health._at = float("-inf")
        health = await client.get("/health")
        assert health.status_code == 503
        assert {c["service"]: c["ok"] for c in health.json()["checks"]}["builder"] is False


async def test_a_defect_is_told_without_its_traceback(
    tmp_path: Path, host: MemoryHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with speaking(tmp_path, host) as (it, client):

        def broken() -> Catalogue:
            raise ValueError("a secret detail")

        monkeypatch.setattr(it.controller, "catalogue", broken)
        answer = await client.get("/api/catalogue")
        assert problem(answer, 500).kind == "internal"
        assert "secret" not in answer.text
