"""Which of several controllers is active: the one that holds a Lease (coordination.k8s.io/v1).

Guarantees:
- At most one leads: who cannot renew in time knows it before another may take over, whatever the network does, and
  nobody's clock is compared with another's (each measures how long a record has not changed, by its own clock).
- A leader that ends well gives the Lease back: the next one takes over at once, not after `duration`.
- A Service without a selector leads to whoever leads: the leader writes its address into the EndpointSlice, and looks
  after it; who has lost the Lease writes nothing.

Lease and EndpointSlice are there already (the chart makes them), so that a controller needs no right to create any and
nothing is left when the chart goes. The rule is that of client-go's leaderelection.

    async with leading(LeaseSettings(name="pb-controller", identity=pod, address=ip, port=8587)) as lost:
        …                                   # lead, until `lost` is set; then end the process
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.builders.kubernetes.api import Api, ApiAway, ApiRefused, Object
from prebinder.model.failure import EngineError, FailureKind
from prebinder.model.messages import Health, HealthCheck, Problem

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """Times in seconds."""

    name: str
    """Of Lease and EndpointSlice."""
    identity: str
    """This process and no other: its pod's name."""
    address: str | None = None
    """This pod's address, for the EndpointSlice; None writes none."""
    port: int = 0
    namespace: str | None = None
    """This pod's own when None."""
    duration: float = 15.0
    """A Lease that was not renewed for this long may be taken."""
    patience: float = 10.0
    """Who could not renew for this long leads no more. Less than `duration`."""
    pause: float = 2.0
    """Between two looks, and between two renewals."""

    def __post_init__(self) -> None:
        if not self.pause < self.patience < self.duration:
            raise ValueError("pause, patience and duration must grow in this order")


@dataclass(frozen=True, slots=True)
class Seen:
    """What was read of a Lease, and when it first looked like this, by our own clock."""

    holder: str
    renewed: str
    since: float
    version: str

    @classmethod
    def of(cls, lease: Object, before: Seen | None, now: float) -> Seen:
        spec = lease.get("spec") or {}
        holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
        same = before is not None and (before.holder, before.renewed) == (holder, renewed)
        since = before.since if before is not None and same else now
        return cls(holder, renewed, since, str(lease["metadata"]["resourceVersion"]))


def may_take(seen: Seen, identity: str, now: float, duration: float) -> bool:
    """Whether the Lease is nobody's, ours (of this process, before it lost sight of it), or no longer renewed."""
    return seen.holder in ("", identity) or now - seen.since >= duration


def taken(lease: Object, settings: LeaseSettings, at: datetime) -> Object:
    """The Lease as it stands when `identity` holds it from now on. The version makes a race a conflict."""
    spec = dict(lease.get("spec") or {})
    stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if spec.get("holderIdentity") != settings.identity:
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        spec["acquireTime"] = stamp
    duration = max(1, round(settings.duration))
    spec |= {"holderIdentity": settings.identity, "renewTime": stamp, "leaseDurationSeconds": duration}
    return {**lease, "spec": spec}


def given_back(lease: Object) -> Object:
    """The Lease as it stands when nobody holds it."""
    return {**lease, "spec": {**(lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1}}


def leads_to(slice_: Object, address: str, port: int) -> Object:
    """The EndpointSlice as it stands when the Service leads to `address` alone."""
    endpoint = {"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False}}
    return {**slice_, "endpoints": [endpoint], "ports": [{"name": "http", "protocol": "TCP", "port": port}]}


def does_lead_to(slice_: Object, address: str, port: int) -> bool:
    """Whether the Service leads to `address` alone. What else the cluster may have put there does not matter."""
    addresses = [endpoint.get("addresses") for endpoint in slice_.get("endpoints") or ()]
    return addresses == [[address]] and [p.get("port") for p in slice_.get("ports") or ()] == [port]


@contextlib.asynccontextmanager
async def leading(settings: LeaseSettings, clock: Callable[[], float] = monotonic) -> AsyncIterator[asyncio.Event]:
    """Wait until this process leads; leads while the block runs. The event is set when that is over too early.

    Raises EngineError when the cluster does not let us (no Lease by that name, or no right to it), and when the Lease
    is lost before the block begins.
    """
    api = await Api.connect(settings.namespace)
    try:
        election = _Election(api, settings, clock)
        await election.acquire()
        lost = asyncio.Event()
        renewing = asyncio.create_task(election.keep(lost))
        try:
            await election.announce(lost)
            if lost.is_set():
                raise EngineError(
                    f"The Lease {settings.name} was lost before the Service led to this controller: another may be "
                    "active. This one ends, to stand by when it is started again."
                )
            yield lost
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            if not lost.is_set():
                await election.give_back()
    finally:
        await api.aclose()


class _Election:
    """One candidate's part."""

    def __init__(self, api: Api, settings: LeaseSettings, clock: Callable[[], float]) -> None:
        self._api = api
        self._settings = settings
        self._clock = clock
        self._path = f"apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases/{settings.name}"
        self._slice = f"apis/discovery.k8s.io/v1/namespaces/{api.namespace}/endpointslices/{settings.name}"
        self._renewed = 0.0
        """When our last renewal was sent that came through."""

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        seen: Seen | None = None
        while True:
            asked = self._clock()
            try:
                lease = await self._api.ask("GET", self._path)
                held = seen.holder if seen else None
                seen = Seen.of(lease, seen, self._clock())
                if may_take(seen, self._settings.identity, self._clock(), self._settings.duration):
                    asked = self._clock()
                    await self._api.ask("PUT", self._path, body=taken(lease, self._settings, datetime.now(UTC)))
                    self._renewed = asked
                    log.info("lease.taken", lease=self._settings.name, before=seen.holder or None)
                    return
                if held != seen.holder:
                    log.info("lease.standing_by", lease=self._settings.name, active=seen.holder)
            except ApiRefused as error:
                if error.status != 409:  # somebody else was quicker
                    raise _not_allowed(self._settings.name, error) from None
            except ApiAway as error:
                log.warning("lease.api_away", reason=str(error))
            await asyncio.sleep(self._settings.pause)

    async def keep(self, lost: asyncio.Event) -> None:
        """Renew, and see to it that the Service leads to us, until the Lease is lost; then set `lost`.

        Whatever ends the renewing sets it, but for being cancelled.
        """
        try:
            await self._renew_until_lost()
        except Exception:
            log.exception("lease.defect", lease=self._settings.name)
        lost.set()

    async def _renew_until_lost(self) -> None:
        while True:
            await asyncio.sleep(self._settings.pause)
            left = self._renewed + self._settings.patience - self._clock()
            reason = "it could not be renewed in time"
            try:
                if left > 0:
                    # An answer that hangs must not keep us leading.
                    async with asyncio.timeout(left):
                        ours = await self._renew()
                    if ours:
                        await self._announce_again()
                        continue
                    reason = "another holds it"
                    left = 0
            except (ApiAway, ApiRefused, TimeoutError) as error:
                log.warning("lease.not_renewed", lease=self._settings.name, reason=str(error) or "time is over")
                left = self._renewed + self._settings.patience - self._clock()
            if left <= 0:
                log.error("lease.lost", lease=self._settings.name, reason=reason)
                return

    async def _renew(self) -> bool:
        """False when another holds the Lease."""
        asked = self._clock()
        lease = await self._api.ask("GET", self._path)
        if (lease.get("spec") or {}).get("holderIdentity") != self._settings.identity:
            return False
        await self._api.ask("PUT", self._path, body=taken(lease, self._settings, datetime.now(UTC)))
        self._renewed = asked
        return True

    async def announce(self, lost: asyncio.Event) -> None:
        """Let the Service lead to us. Tried until it is so or `lost` is set: without it nobody finds the controller."""
        while not lost.is_set():
            try:
                await self._write_address()
                return
            except ApiRefused as error:
                if error.status != 409:
                    raise _not_allowed(self._settings.name, error) from None
            except ApiAway as error:
                log.warning("lease.api_away", reason=str(error))
            await asyncio.sleep(self._settings.pause)

    async def _announce_again(self) -> None:
        """What one who led before wrote late is put right. When it fails, the next renewal brings another try."""
        try:
            async with asyncio.timeout(self._settings.pause):  # the next renewal does not wait for it
                if await self._write_address():
                    log.info("lease.announced", lease=self._settings.name, address=self._settings.address)
        except (ApiAway, ApiRefused, TimeoutError) as error:
            log.warning("lease.not_announced", lease=self._settings.name, reason=str(error) or "time is over")

    async def _write_address(self) -> bool:
        """Our address into the EndpointSlice; False when it needs none. Its version makes a race a conflict."""
        if self._settings.address is None:
            return False
        old = await self._api.ask("GET", self._slice)
        if does_lead_to(old, self._settings.address, self._settings.port):
            return False
        new = leads_to(old, self._settings.address, self._settings.port)
        await self._api.ask("PUT", self._slice, body=new)
        return True

    async def give_back(self) -> None:
        """Let the next one take over at once. When it fails, the next one waits for `duration`."""
        try:
            async with asyncio.timeout(5):
                lease = await self._api.ask("GET", self._path)
                if (lease.get("spec") or {}).get("holderIdentity") == self._settings.identity:
                    await self._api.ask("PUT", self._path, body=given_back(lease))
                    log.info("lease.given_back", lease=self._settings.name)
        except (EngineError, TimeoutError) as error:
            log.warning("lease.not_given_back", lease=self._settings.name, reason=str(error) or "time is over")


class Standby:
    """What answers on the controller's port: that this one stands by, until `app` is set to the controller's own."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None and scope["type"] != "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["path"] == "/health":
            check = HealthCheck(service="lease", ok=True, message="Stands by: another controller is active.")
            await _answer(send, 200, Health(ok=True, checks=(check,)).model_dump(mode="json"))
        else:
            problem = Problem(kind=FailureKind.INTERRUPTED, message="Stands by: another controller is active.")
            await _answer(send, 503, problem.model_dump(mode="json"), ((b"retry-after", b"2"),))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(send: Send, status: int, body: Any, further: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", b"application/json"), *further]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _not_allowed(name: str, error: ApiRefused) -> EngineError:
    if error.status == 404:
        return EngineError(
            f"There is no Lease or EndpointSlice {name}. The chart makes both (controller.lease: true); "
            "without the chart, make them or leave controller.lease out."
        )
    return EngineError(f"The cluster does not let this controller use the Lease {name}: {error}")
