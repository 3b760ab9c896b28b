"""Which of several controllers is active: the rule as tables, and real candidates on a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from prebinder.builders.kubernetes.api import Api, ApiAway, ApiRefused
from prebinder.leader import LeaseSettings, Seen, Standby, does_lead_to, leading, leads_to, may_take, taken
from prebinder.model.failure import EngineError
from tests.support.controller import until
from tests.support.kube import Cluster, cluster, namespace

__all__ = ["cluster", "namespace"]
DURATION = 6.0


def lease(holder: str = "", renewed: str = "", version: str = "1") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder, "renewTime": renewed}}


def test_a_lease_is_taken_when_nobody_renews_it_by_our_own_clock() -> None:
    first = Seen.of(lease("other", "t1"), None, now=100.0)
    assert not may_take(first, "me", 100.0, 15)
    again = Seen.of(lease("other", "t1"), first, now=110.0)
    assert not may_take(again, "me", 110.0, 15)
    assert may_take(Seen.of(lease("other", "t1"), again, now=115.0), "me", 115.0, 15)


def test_a_renewed_lease_is_not_taken_however_old_its_clock_says_it_is() -> None:
    seen = Seen.of(lease("other", "1999-01-01T00:00:00Z"), None, now=100.0)
    seen = Seen.of(lease("other", "1999-01-01T00:00:05Z"), seen, now=114.9)
    assert not may_take(seen, "me", 115.0, 15)


@pytest.mark.parametrize("holder", ["", "me"])
def test_a_lease_that_is_nobodys_or_ours_is_taken_at_once(holder: str) -> None:
    assert may_take(Seen.of(lease(holder, "t"), None, now=0.0), "me", 0.0, 15)


def test_a_lease_without_any_content_is_nobodys() -> None:
    assert Seen.of({"metadata": {"resourceVersion": "1"}}, None, 0.0).holder == ""


def test_taking_counts_a_transition_and_renewing_does_not() -> None:
    settings = LeaseSettings(name="x", identity="me")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    mine = taken(lease("other"), settings, at)["spec"]
    assert mine == {
        "holderIdentity": "me", "leaseTransitions": 1, "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-02T03:04:05.000000Z", "renewTime": "2026-01-02T03:04:05.000000Z",
    }  # fmt: skip
    later = taken({"metadata": {}, "spec": mine}, settings, at.replace(minute=5))["spec"]
    assert later["leaseTransitions"] == 1
    assert later["acquireTime"] == mine["acquireTime"]
    assert later["renewTime"] > mine["renewTime"]


def test_times_that_would_let_two_lead_are_refused() -> None:
    with pytest.raises(ValueError, match="grow"):
        LeaseSettings(name="x", identity="me", duration=10, patience=10)


async def test_a_standby_answers_that_it_is_one_until_it_leads() -> None:
    async def own(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = Standby()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://controller") as client:
        assert (await client.get("/health")).json()["ok"] is True
        refused = await client.get("/api/catalogue")
        assert refused.status_code == 503
        assert refused.json()["message"].startswith("Stands by")
        assert refused.headers["retry-after"]
        app.app = own
        assert (await client.get("/api/catalogue")).status_code == 204


class ScriptedApi:
    """One Lease and one EndpointSlice, with versions as the API server keeps them. `trouble` is what
    asking for either raises."""

    namespace = "here"

    def __init__(self) -> None:
        self.objects = {kind: {"metadata": {"resourceVersion": "1"}} for kind in ("leases", "endpointslices")}
        self.trouble: dict[str, Exception] = {}

    async def ask(self, method: str, path: str, *, body: Any = None) -> Any:
        kind = path.split("/")[-2]
        if error := self.trouble.get(kind):
            raise error
        if method == "PUT":
            if body["metadata"] != self.objects[kind]["metadata"]:
                raise ApiRefused("It was changed meanwhile.", 409, "Conflict")
            self.put(kind, body)
        return self.objects[kind]

    def put(self, kind: str, what: Any) -> None:
        version = int(self.objects[kind]["metadata"]["resourceVersion"]) + 1
        self.objects[kind] = {**what, "metadata": {"resourceVersion": str(version)}}

    def leads_to(self, address: str) -> bool:
        return does_lead_to(self.objects["endpointslices"], address, 8587)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> ScriptedApi:
    made = ScriptedApi()

    async def connect(namespace: str | None) -> ScriptedApi:
        return made

    monkeypatch.setattr(Api, "connect", connect)
    return made


QUICK = LeaseSettings(name="x", identity="me", address="10.0.0.1", port=8587, duration=60, patience=50, pause=0.02)


async def test_a_service_that_one_who_led_before_leads_elsewhere_leads_to_the_leader_again(api: ScriptedApi) -> None:
    async with leading(QUICK) as lost:
        assert api.leads_to("10.0.0.1")
        api.put("endpointslices", leads_to(api.objects["endpointslices"], "10.0.0.9", 8587))
        api.trouble["endpointslices"] = ApiAway("It does not answer.")
        renewed = api.objects["leases"]
        await until(lambda: api.objects["leases"] is not renewed)
        api.trouble.clear()
        await until(lambda: api.leads_to("10.0.0.1"))
        assert not lost.is_set()
    assert api.objects["leases"]["spec"]["holderIdentity"] == ""  # type: ignore[index]


async def test_one_who_lost_the_lease_before_the_service_led_to_it_writes_nothing_and_does_not_lead(
    api: ScriptedApi,
) -> None:
    api.trouble["endpointslices"] = ApiAway("It does not answer.")
    begun = False

    async def lead() -> None:
        nonlocal begun
        async with leading(QUICK):
            begun = True

    task = asyncio.create_task(lead())
    await until(lambda: "spec" in api.objects["leases"])
    api.put("leases", lease("other", "t"))
    api.put("endpointslices", leads_to(api.objects["endpointslices"], "10.0.0.9", 8587))
    with pytest.raises(EngineError, match="Lease x was lost"):
        await asyncio.wait_for(task, 10)
    assert not begun
    assert api.leads_to("10.0.0.9")
    assert api.objects["leases"]["spec"]["holderIdentity"] == "other"  # type: ignore[index]


async def test_a_leader_that_meets_what_nobody_foresaw_knows_that_it_leads_no_more(api: ScriptedApi) -> None:
    async with leading(QUICK) as lost:
        api.trouble["leases"] = KeyError("spec")
        await asyncio.wait_for(lost.wait(), 10)


@pytest.fixture
def name(cluster: Cluster, namespace: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A Lease, a Service and its EndpointSlice, as the chart makes them."""
    of_test = f"l{abs(hash(request.node.name)) % 10**8}"
    cluster.apply(
        [
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": of_test}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": of_test},
             "spec": {"ports": [{"name": "http", "port": 8587}]}},
        ],
        namespace,
    )  # fmt: skip
    labels = {"kubernetes.io/service-name": of_test, "endpointslice.kubernetes.io/managed-by": "prebinder"}
    slice_ = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
              "endpoints": [], "metadata": {"name": of_test, "labels": labels}}  # fmt: skip
    cluster.apply(slice_, namespace)
    yield of_test
    cluster.kubectl("-n", namespace, "delete", "lease,service", of_test)


@pytest.fixture
def settings(cluster: Cluster, namespace: str, name: str, monkeypatch: pytest.MonkeyPatch) -> LeaseSettings:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return LeaseSettings(
        name=name, identity="", namespace=namespace, port=8587, duration=DURATION, patience=4.5, pause=0.5
    )


class Candidate:
    """A controller that wants to lead."""

    def __init__(self, settings: LeaseSettings, identity: str, address: str | None = None) -> None:
        self._settings = dataclasses.replace(settings, identity=identity, address=address)
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with leading(self._settings) as lost:
            self.leads.set()
            waiting = [asyncio.create_task(lost.wait()), asyncio.create_task(self._end.wait())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if lost.is_set():
                self.lost.set()

    async def end(self) -> None:
        self._end.set()
        await asyncio.wait_for(self.task, 20)


@contextlib.asynccontextmanager
async def candidates(settings: LeaseSettings, *names: str) -> AsyncIterator[list[Candidate]]:
    made = [Candidate(settings, n, f"10.0.0.{i + 1}") for i, n in enumerate(names)]
    try:
        yield made
    finally:
        for candidate in made:
            candidate.task.cancel()
        await asyncio.gather(*(c.task for c in made), return_exceptions=True)


async def _first(made: list[Candidate]) -> tuple[Candidate, list[Candidate]]:
    waiting = [asyncio.create_task(c.leads.wait()) for c in made]
    done, rest = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    assert done, "nobody leads"
    leader = next(c for c in made if c.leads.is_set())
    return leader, [c for c in made if c is not leader]


@pytest.mark.kubernetes
async def test_of_several_started_at_once_one_leads_and_the_service_leads_to_it(
    cluster: Cluster, namespace: str, name: str, settings: LeaseSettings
) -> None:
    async with candidates(settings, "a", "b", "c") as made:
        leader, others = await _first(made)
        await asyncio.sleep(DURATION)  # longer than a Lease lasts: it is renewed
        assert not any(c.leads.is_set() for c in others)
        assert not leader.lost.is_set()
        [found] = [o for o in cluster.get("endpointslices", namespace) if o["metadata"]["name"] == name]
        assert found["endpoints"][0]["addresses"] == [f"10.0.0.{made.index(leader) + 1}"]


@pytest.mark.kubernetes
async def test_a_leader_that_ends_well_makes_room_at_once(settings: LeaseSettings) -> None:
    patient = dataclasses.replace(settings, duration=60.0)  # nobody would wait for that here
    async with candidates(patient, "a", "b") as made:
        leader, [other] = await _first(made)
        await leader.end()
        await asyncio.wait_for(other.leads.wait(), 30)


@pytest.mark.kubernetes
async def test_a_leader_that_dies_is_followed_when_its_lease_has_run_out(
    cluster: Cluster, namespace: str, name: str, settings: LeaseSettings
) -> None:
    """A holder that never renews stands for a process that was killed."""
    spec = {"holderIdentity": "killed", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 6}
    cluster.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec},
                  namespace)  # fmt: skip
    started = asyncio.get_running_loop().time()
    async with candidates(settings, "next") as [candidate]:
        await asyncio.wait_for(candidate.leads.wait(), DURATION + 10)
        assert asyncio.get_running_loop().time() - started >= DURATION


@pytest.mark.kubernetes
async def test_a_leader_whose_lease_another_took_knows_it(
    cluster: Cluster, namespace: str, name: str, settings: LeaseSettings
) -> None:
    async with candidates(settings, "a") as [leader]:
        await _first([leader])
        patch = '{"spec": {"holderIdentity": "usurper"}}'
        cluster.kubectl("-n", namespace, "patch", "lease", name, "--type=merge", "-p", patch)
        await asyncio.wait_for(leader.lost.wait(), 20)


@pytest.mark.kubernetes
async def test_a_leader_that_cannot_renew_knows_it_before_another_may_lead(
    settings: LeaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with candidates(settings, "a") as [leader]:
        await _first([leader])

        async def hangs(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(3600)

        monkeypatch.setattr(Api, "ask", hangs)  # a network that swallows everything cannot be had for one process
        started = asyncio.get_running_loop().time()
        await asyncio.wait_for(leader.lost.wait(), 20)
        assert asyncio.get_running_loop().time() - started < DURATION


@pytest.mark.kubernetes
async def test_without_a_lease_it_is_said_what_to_do(settings: LeaseSettings) -> None:
    with pytest.raises(EngineError, match="There is no Lease"):
        async with leading(dataclasses.replace(settings, name="nowhere", identity="a")):
            pass
