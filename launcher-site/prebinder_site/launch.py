"""A click, as a stream of events: resolve the ref, find the image, build it when there is none, start a server.

The design's test lives here: a click on an image that exists touches neither the controller nor the Git host. The
catalogue says which images are ready; what it does not know is asked of the image store. If the Hub cannot start an
image because it is gone, the image is forgotten and built once more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from prebinder.hosts.base import Host
from prebinder.model.events import Phase
from prebinder.model.failure import Failure, FailureKind, PrebinderError, RefusedError, SpecError
from prebinder.model.images import ImageName, image_name
from prebinder.model.links import LandingError, landing_path
from prebinder.model.messages import LaunchRecord
from prebinder.model.spec import Provider, Spec, parse_spec
from prebinder.registry.base import ImageStore
from prebinder_site.builds import Builds, ControllerRefused
from prebinder_site.catalogue import Index
from prebinder_site.events import ClickEvent, failed, launching, waiting
from prebinder_site.hub import HubBusy, JupyterHub, Progress, Server, SpawnFailed
from prebinder_site.metrics import OTHER, Metrics
from prebinder_site.records import LaunchLog, LaunchRecords
from prebinder_site.resolve import Resolved, Resolver
from prebinder_site.settings import EndpointSettings
from prebinder_site.sharing import SharedCalls

log = structlog.get_logger(__name__)

_IMAGE_KNOWN_FOR = 30.0
_LAUNCH_TRIES = 3
# A Hub that starts many servers says "later"; when a class comes at once, everybody waits for their turn. It proposes
# half a minute and more, which spreads requests but not people's patience.
_BUSY_PATIENCE = 600.0
_BUSY_PAUSE = 8.0
_QUICK_FAILURE = 10.0
_LOG_PROVIDERS = {
    Provider.GITHUB: "GitHub",
    Provider.GITLAB: "GitLab",
    Provider.GIT: "Git",
    Provider.GIST: "Gist",
}


@dataclass(frozen=True, slots=True)
class Click:
    """What the browser asked for. `spec` is what follows the provider in the URL, still percent-escaped."""

    provider: str
    spec: str
    query: Mapping[str, str] = field(default_factory=dict)
    request_origin: str = ""
    """The `Origin` header: the page that asked."""


@dataclass(slots=True)
class _Outcome:
    """What is known about a click so far, for its record."""

    spec: Spec | None = None
    resolved: Resolved | None = None
    revision: str | None = None
    image: str | None = None
    build: str | None = None
    """Id of the build that was followed."""
    ok: bool = False
    ended: bool = False
    failure: FailureKind | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """An image to start: `name` is what people know it by, `launchable` what the Hub starts."""

    name: ImageName
    launchable: str


class Launcher:
    """Runs clicks. All parts are given; `index` gives the catalogue as it is now."""

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        index: Callable[[], Index],
        resolver: Resolver,
        images: ImageStore,
        builds: Builds,
        hub: JupyterHub,
        hosts: Mapping[Provider, Host],
        metrics: Metrics,
        launch_log: LaunchLog,
        records: LaunchRecords,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._index = index
        self._resolver = resolver
        self._images = images
        self._builds = builds
        self._hub = hub
        self._hosts = hosts
        self._metrics = metrics
        self._log = launch_log
        self._records = records
        self._clock = clock
        self._known: SharedCalls[ImageName, str | None] = SharedCalls(ttl=_IMAGE_KNOWN_FOR)
        self._gone: SharedCalls[ImageName, bool] = SharedCalls(ttl=_IMAGE_KNOWN_FOR)

    async def click(self, click: Click) -> AsyncGenerator[ClickEvent]:
        """The events of one click. The last is `ready` or `failed`; nothing is raised."""
        outcome, started, at = _Outcome(), time.perf_counter(), self._clock()
        try:
            async with aclosing(self._run(click, outcome)) as events:
                async for event in events:
                    if event.phase in (Phase.READY, Phase.FAILED):
                        outcome.ended, outcome.ok = True, event.phase is Phase.READY
                        outcome.failure = event.failure
                        self._record(click, outcome, at, time.perf_counter() - started)
                    yield event
        except ControllerRefused as error:
            yield self._ended(click, outcome, at, started, error.failure(), error.status)
        except (SpecError, LandingError) as error:
            yield self._ended(click, outcome, at, started, error.failure(), 400)
        except HubBusy as error:
            failure = error.failure()
            if self._settings.max_servers and error.retry_after is None:
                taken = f"All {self._settings.max_servers} servers of this installation are taken."
                failure = Failure(failure.kind, f"{taken} Try again in a few minutes. ({error})")
            yield self._ended(click, outcome, at, started, failure, 429)
        except PrebinderError as error:
            yield self._ended(click, outcome, at, started, error.failure(), None)
        except Exception:
            log.exception("click.defect", provider=click.provider, spec=click.spec[:200])
            failure = Failure(FailureKind.INTERNAL, f"{FailureKind.INTERNAL.heading}. {FailureKind.INTERNAL.advice}")
            yield self._ended(click, outcome, at, started, failure, None)

    async def _run(self, click: Click, outcome: _Outcome) -> AsyncGenerator[ClickEvent]:
        spec = outcome.spec = parse_spec(click.provider, click.spec.rstrip("/"))
        landing_path(click.query)
        build_only = _truth(click.query.get("build_only"))
        if build_only and not self._settings.build_only:
            raise LandingError("build_only is not allowed on this installation; leave it out of the address.")

        resolved = outcome.resolved = await self._resolver.resolve(spec, self._index())
        for notice in resolved.notices:
            yield waiting(notice)
        outcome.revision = resolved.revision
        found = await self._find(resolved)
        if found is not None:
            yield _built(found, "Found built image, launching...\n")
        else:
            again = _truth(click.query.get("rebuild"))
            async for event in self._build(resolved, outcome, rebuild=again):
                yield event
            found = self._after_build(resolved, outcome)
            yield _built(found, "Built image, launching...\n")
        outcome.image = found.launchable

        if build_only:
            yield ClickEvent(Phase.READY, "The image is ready.\n", {"imageName": str(found.name)})
            return
        try:
            async for event in self._launch(click, resolved, found, outcome):
                yield event
            return
        except SpawnFailed:
            if not await self._is_gone(found):
                raise
        yield waiting("The image is not there any more. It is built again…\n")
        at_revision = Resolved(resolved.spec.at(outcome.revision or ""), outcome.revision, resolved.registered)
        async for event in self._build(at_revision, outcome, rebuild=True):
            yield event
        found = self._after_build(at_revision, outcome)
        yield _built(found, "Built image, launching...\n")
        async for event in self._launch(click, resolved, found, outcome):
            yield event

    async def _find(self, resolved: Resolved) -> _Found | None:
        """The image of what was resolved, from the catalogue or else from the image store. Raises RegistryError."""
        if resolved.revision is None:
            return None
        name = self._image_name(resolved, resolved.revision)
        if self._gone.kept(name) is None and resolved.registered is not None:
            launchable = resolved.registered.image_of(resolved.revision)
            if launchable is not None:
                return _Found(name, launchable)
        launchable = await self._known.ask(name, lambda: self._images.launchable(name))
        return _Found(name, launchable) if launchable else None

    async def _build(self, resolved: Resolved, outcome: _Outcome, *, rebuild: bool) -> AsyncGenerator[ClickEvent]:
        """Have the image built and show its events, up to and without `built`. Ends with `outcome.image` set, or
        raises ControllerRefused; a failed build's own event says so, then `_BuildEnded` is raised."""
        started = time.perf_counter()
        labels = self._labels(resolved)
        with self._metrics.builds.track_inprogress():
            reply = await self._builds.request(resolved.spec, rebuild=rebuild)
            outcome.revision, outcome.image = reply.revision, reply.launchable
            outcome.build = reply.build.id if reply.build else None
            if reply.launchable is not None or reply.build is None:
                return
            last: ClickEvent | None = None
            async with aclosing(self._builds.follow(reply.build.id)) as events:
                async for event in events:
                    last = event
                    if event.phase in (Phase.BUILT, Phase.FAILED):
                        break
                    yield event
                outcome.image = self._builds.image(reply.build.id)
        ok = last is not None and last.phase is Phase.BUILT
        status = "success" if ok else "failure"
        self._metrics.build_time.labels(status=status).observe(time.perf_counter() - started)
        self._metrics.build_count.labels(status=status, **labels).inc()
        if not ok:
            failure = last.failure if last is not None and last.failure else FailureKind.INTERNAL
            message = last.message if last is not None else failure.heading
            raise ControllerRefused(Failure(failure, message), _status(last))

    def _after_build(self, resolved: Resolved, outcome: _Outcome) -> _Found:
        if outcome.revision is None or outcome.image is None:
            raise RefusedError("The controller neither has this image nor builds it. Tell the operator.")
        name = self._image_name(resolved, outcome.revision)
        self._gone.forget(name)
        self._known.forget(name)
        return _Found(name, outcome.image)

    async def _launch(
        self, click: Click, resolved: Resolved, found: _Found, outcome: _Outcome
    ) -> AsyncGenerator[ClickEvent]:
        """Start a server. Raises HubError."""
        revision = outcome.revision or ""
        repo_url, ref_url = self._addresses(resolved, revision)
        binder = {
            "binder_ref_url": ref_url,
            "binder_launch_host": self._settings.public_url,
            "binder_request": f"v2/{click.provider}/{click.spec.rstrip('/')}",
            "binder_persistent_request": f"v2/{resolved.spec.at(revision)}",
        }
        yield launching("Launching server...\n")
        labels = self._labels(resolved)
        attempt = 1
        patient_until = time.monotonic() + _BUSY_PATIENCE
        while True:
            started = time.perf_counter()
            try:
                with self._metrics.launches.track_inprogress():
                    async with aclosing(self._hub.launch(found.launchable, repo_url, binder)) as steps:
                        async for step in steps:
                            if isinstance(step, Progress):
                                yield launching(step.message)
                            else:
                                self._count_launch("success", attempt - 1, started, labels)
                                yield _ready(step, found, repo_url, binder)
                                return
            except HubBusy as busy:
                self._count_launch("retry", -1, started, labels)
                if busy.retry_after is None or time.monotonic() > patient_until:
                    self._metrics.launch_count.labels(status="failure", **labels).inc()
                    raise
                pause = min(max(busy.retry_after, 1.0), _BUSY_PAUSE) * random.uniform(0.6, 1.0)  # noqa: S311
                yield launching(f"Many people start servers now; trying again in {max(1, round(pause))} seconds.\n")
                await asyncio.sleep(pause)
            except SpawnFailed:
                quick = time.perf_counter() - started < _QUICK_FAILURE
                again = quick and attempt < _LAUNCH_TRIES - 1 and not await self._is_gone(found)
                self._count_launch("retry" if again else "failure", -1, started, labels)
                if not again:
                    self._metrics.launch_count.labels(status="failure", **labels).inc()
                    raise
                yield launching(f"Launch attempt {attempt} failed, retrying...\n")
                await asyncio.sleep(0.5 * attempt)
                attempt += 1

    async def _is_gone(self, found: _Found) -> bool:
        """Ask the store afresh whether the image is there; remember for a while if it is not."""
        try:
            launchable = await self._images.launchable(found.name)
        except PrebinderError:
            return False
        if launchable == found.launchable:
            return False
        self._known.forget(found.name)
        self._gone.keep(found.name, True)
        return True

    def _image_name(self, resolved: Resolved, revision: str) -> ImageName:
        return image_name(self._settings.image_prefix, resolved.spec.repository, revision)

    def _addresses(self, resolved: Resolved, revision: str) -> tuple[str, str]:
        """Where the repository is cloned from, and where people read it at `revision`."""
        repository = resolved.spec.repository
        if host := self._hosts.get(repository.provider):
            return host.clone_url(repository), host.web_url(repository, revision)
        url = resolved.registered.entry.url if resolved.registered else ""
        return url, url

    def _labels(self, resolved: Resolved) -> dict[str, str]:
        repo = resolved.registered.entry.url if resolved.registered else OTHER
        return {"provider": _LOG_PROVIDERS[resolved.spec.repository.provider], "repo": repo}

    def _count_launch(self, status: str, retries: int, started: float, labels: Mapping[str, str]) -> None:
        self._metrics.launch_time.labels(status=status, retries=retries).observe(time.perf_counter() - started)
        if status == "success":
            self._metrics.launch_count.labels(status=status, **labels).inc()

    def _ended(
        self, click: Click, outcome: _Outcome, at: datetime, started: float, failure: Failure, status: int | None
    ) -> ClickEvent:
        outcome.failure = failure.kind
        self._record(click, outcome, at, time.perf_counter() - started)
        return failed(failure, status, outcome.build)

    def _record(self, click: Click, outcome: _Outcome, at: datetime, seconds: float) -> None:
        spec = outcome.resolved.spec if outcome.resolved else outcome.spec
        if spec is None:
            return
        record = LaunchRecord(
            at=at,
            provider=spec.repository.provider,
            repository=str(spec.repository),
            ref=spec.ref,
            revision=outcome.revision,
            image=outcome.image,
            ok=outcome.ok,
            failure=outcome.failure,
            seconds=seconds,
            origin=click.request_origin[:200],
        )
        self._records.add(record)
        self._log.write(
            record,
            spec=click.spec[:2048],
            provider_name=_LOG_PROVIDERS[spec.repository.provider],
            origin=self._settings.public_url,
            request_origin=record.origin,
        )

    async def aclose(self) -> None:
        await self._known.aclose()


def _built(found: _Found, message: str) -> ClickEvent:
    return ClickEvent(Phase.BUILT, message, {"imageName": str(found.name)})


def _ready(server: Server, found: _Found, repo_url: str, binder: Mapping[str, str]) -> ClickEvent:
    return ClickEvent(
        Phase.READY,
        f"server running at {server.url}\n",
        {"url": server.url, "token": server.token, "image": str(found.name), "repo_url": repo_url, **binder},
    )


def _status(event: ClickEvent | None) -> int:
    code = event.fields.get("status_code", 500) if event is not None else 500
    return int(code)


def _truth(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes", "on")
