"""The launch endpoint: the Binder API, the static site, and what operators look at, as one ASGI application.

What clients in the wild rely on is answered as BinderHub does: refusals of `/build` are a 200 with one `failed` event,
since EventSource cannot read anything else. Unknown paths are real 404s.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from prebinder.hosts.base import Host
from prebinder.model.catalogue import Catalogue
from prebinder.model.events import Phase
from prebinder.model.failure import Failure, FailureKind, PrebinderError
from prebinder.model.messages import Health, HealthCheck
from prebinder.model.spec import Provider
from prebinder.registry.base import ImageStore
from prebinder_site.builds import Builds
from prebinder_site.catalogue import CatalogueFollower, first_catalogue
from prebinder_site.events import failed
from prebinder_site.eventstream import send_events
from prebinder_site.headers import CrossOrigin, SecurityHeaders
from prebinder_site.hub import JupyterHub
from prebinder_site.launch import Click, Launcher
from prebinder_site.metrics import Metrics
from prebinder_site.providers import repo_providers
from prebinder_site.records import LaunchLog, LaunchRecords
from prebinder_site.resolve import Resolver
from prebinder_site.routing import Prefix, undecoded_rest
from prebinder_site.settings import EndpointSettings
from prebinder_site.sharing import SharedCalls
from prebinder_site.site.generator import SiteSettings, publish
from prebinder_site.static import StaticSite

__all__ = ["EndpointSettings", "create_app"]

_BUILD_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CROSS_ORIGIN = ("/build/", "/versions", "/api/repoproviders", "/badge", "/health")
_HEALTH_KEPT = 2.0
_PROXY_TIMEOUT = httpx.Timeout(30, connect=5)


class Endpoint:
    """The parts of one launch endpoint, wired together, and the answers to its requests."""

    def __init__(
        self,
        settings: EndpointSettings,
        controller: httpx.AsyncClient,
        images: ImageStore,
        hosts: Mapping[Provider, Host],
        clock: Callable[[], datetime],
    ) -> None:
        self.settings = settings
        self.controller = controller
        self.images = images
        self.metrics = Metrics()
        self.static = StaticSite(settings.site_folder / "current")
        self.follower = CatalogueFollower(
            controller, settings.state_folder / "catalogue.json", first_catalogue(settings), self._publish
        )
        self.hub = JupyterHub(
            settings.hub_api_url, settings.hub_public_url, settings.hub_token, start_timeout=settings.start_timeout
        )
        self.builds = Builds(controller)
        self.resolver = Resolver(
            hosts,
            stale_after=settings.stale_after,
            click_budget=settings.click_budget,
            host_timeout=settings.host_timeout,
            clock=clock,
        )
        self.launch_log = LaunchLog(settings.state_folder / "launches.jsonl")
        self.records = LaunchRecords(controller)
        self.launcher = Launcher(
            settings,
            index=lambda: self.follower.index,
            resolver=self.resolver,
            images=images,
            builds=self.builds,
            hub=self.hub,
            hosts=hosts,
            metrics=self.metrics,
            launch_log=self.launch_log,
            records=self.records,
            clock=clock,
        )
        self._providers = repo_providers(frozenset(hosts))
        self._health: SharedCalls[str, Health] = SharedCalls(ttl=_HEALTH_KEPT)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Follows the catalogue and sends launch records while the application runs."""
        await asyncio.to_thread(self.static.reload)
        tasks = [asyncio.create_task(self.follower.run()), asyncio.create_task(self.records.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.records.flush()
            for part in (self.builds, self.resolver, self.launcher, self.hub):
                await part.aclose()
            self.launch_log.close()

    def _publish(self, catalogue: Catalogue) -> None:
        publish(catalogue, SiteSettings(self.settings.title, self.settings.public_url), self.settings.site_folder)
        self.static.reload()

    async def build(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/build/<provider>/<spec>`: one click as server-sent events."""
        if scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("Only GET is answered here.\n", 405, {"allow": "GET"})(scope, receive, send)
            return
        await send_events(self._click(scope), scope, receive, send, keepalive=self.settings.keepalive)

    async def _click(self, scope: Scope) -> AsyncGenerator[bytes]:
        try:
            provider, _, spec = undecoded_rest(scope, "/build/").partition("/")
        except ValueError as error:
            yield failed(Failure(FailureKind.NOT_FOUND, f"The link cannot be read: {error}."), 400).encoded
            return
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        click = Click(provider, spec, query, Request(scope).headers.get("origin", ""))
        held = b""
        async with aclosing(self.launcher.click(click)) as events:
            async for event in events:
                if event.phase is Phase.BUILT:
                    # The next event follows at once: one packet for both.
                    held = event.encoded
                    continue
                yield held + event.encoded
                held = b""
                if event.phase is Phase.READY:
                    await asyncio.sleep(self.settings.hold_open)

    async def launch_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/v2/…`: one page for every link; its script reads the address."""
        page = self.static.page("/launch.html")
        if page is None or scope["method"] not in ("GET", "HEAD"):
            await self.static(scope, receive, send)
            return
        await page.send(scope, send)

    async def repo(self, request: Request) -> Response:
        """`/repo/<user>/<repo>[/<path>]`, BinderHub's oldest links."""
        owner, name = (quote(request.path_params[key], safe="") for key in ("owner", "name"))
        path = request.path_params.get("path", "")
        query = f"?{urlencode({'urlpath': path})}" if path.strip("/") else ""
        return RedirectResponse(f"/v2/gh/{owner}/{name}/HEAD{query}", 302)

    async def versions(self, _: Request) -> Response:
        """MyST and others know a Binder by the key `binderhub`."""
        return JSONResponse(
            {
                "builder_info": {"build_image": self.settings.builder_version},
                "binderhub": f"prebinder-{self.settings.version}",
                "prebinder": self.settings.version,
            }
        )

    async def repoproviders(self, _: Request) -> Response:
        return JSONResponse(self._providers)

    async def metrics_page(self, _: Request) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(self, _: Request) -> Response:
        """200 while ready images can be launched. A controller that is away is told, but does not make it 503."""
        health = await self._health.ask("", self._check)
        return JSONResponse(health.model_dump(mode="json", exclude_none=True), 200 if health.ok else 503)

    async def ready(self, _: Request) -> Response:
        """503 while a new endpoint waits for its first catalogue: older ones, which have one, serve better."""
        if self.follower.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("Waiting for the controller's catalogue.\n", 503, {"retry-after": "1"})

    async def _check(self) -> Health:
        async def check(service: str, question: Any) -> HealthCheck:
            try:
                async with asyncio.timeout(6):
                    await question
            except PrebinderError as error:
                return HealthCheck(service=service, ok=False, message=str(error))
            except (httpx.HTTPError, TimeoutError):
                away = f"The {service} does not answer. Links whose image is ready work; nothing is built."
                return HealthCheck(service=service, ok=False, message=away)
            return HealthCheck(service=service, ok=True)

        async def ask_controller() -> None:
            # Not its status, which asks its own services first: a slow engine would look like an absent controller.
            headers = {"if-none-match": f'"{self.follower.index.catalogue.version}"'}
            answer = await self.controller.get("/api/catalogue", headers=headers, timeout=5)
            if answer.status_code != 304:
                answer.raise_for_status()

        checks = await asyncio.gather(
            check("JupyterHub", self.hub.health()),
            check("image store", self.images.health()),
            check("controller", ask_controller()),
        )
        return Health(ok=all(c.ok for c in checks[:2]), checks=checks)

    async def status(self, _: Request) -> Response:
        """What the endpoint knows, and the controller's status when it answers."""
        catalogue = self.follower.index.catalogue
        controller: dict[str, Any] | None = None
        try:
            response = await self.controller.get("/api/status", timeout=15)
            if response.is_success:
                controller = {k: v for k, v in response.json().items() if k != "configuration"}
        except (httpx.HTTPError, ValueError):
            pass
        known = {
            "version": catalogue.version,
            "published_at": catalogue.published_at.isoformat(),
            "following": self.follower.connected,
        }
        return JSONResponse({"version": self.settings.version, "catalogue": known, "controller": controller})

    async def build_record(self, request: Request) -> Response:
        """`/builds/<id>`: the build's record."""
        return await self._from_controller(request, "", "application/json")

    async def build_log(self, request: Request) -> Response:
        """`/builds/<id>/log`: the log, as it is being written."""
        return await self._from_controller(request, "/log", "text/plain; charset=utf-8")

    async def _from_controller(self, request: Request, rest: str, content_type: str) -> Response:
        """Hand on one of the controller's answers. The content type is ours: a log must never be taken for a page."""
        build = request.path_params["build"]
        if not _BUILD_ID.fullmatch(build) or set(build) == {"."}:
            return PlainTextResponse("There is no such build.\n", 404)
        query = self.controller.build_request("GET", f"/api/builds/{build}{rest}", timeout=_PROXY_TIMEOUT)
        try:
            answer = await self.controller.send(query, stream=True)
        except httpx.HTTPError:
            away = "The controller, which keeps the logs, does not answer. Try again soon.\n"
            return PlainTextResponse(away, 503, {"retry-after": "10"})
        if not answer.is_success:
            await answer.aclose()
            return PlainTextResponse("There is no such build.\n", 404 if answer.status_code == 404 else 502)

        async def body() -> AsyncGenerator[bytes]:
            try:
                async for chunk in answer.aiter_bytes():
                    yield chunk
            finally:
                await answer.aclose()

        return StreamingResponse(body(), 200, {"content-type": content_type, "cache-control": "no-cache"})


def create_app(
    settings: EndpointSettings,
    *,
    controller: httpx.AsyncClient,
    images: ImageStore,
    hosts: Mapping[Provider, Host],
    extra_routes: Mapping[str, ASGIApp] | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """The application. `controller` has the controller's address as its base URL and must be able to stream; it,
    `images` and `hosts` stay the caller's to close. `extra_routes` are applications by prefix (`/hooks/`)."""
    endpoint = Endpoint(settings, controller, images, hosts, clock)
    routes = [
        Prefix("/build/", endpoint.build),
        Prefix("/v2/", endpoint.launch_page),
        *(Prefix(prefix, app) for prefix, app in (extra_routes or {}).items()),
        Route("/repo/{owner}/{name}", endpoint.repo),
        Route("/repo/{owner}/{name}/{path:path}", endpoint.repo),
        Route("/versions", endpoint.versions),
        Route("/health", endpoint.health),
        Route("/ready", endpoint.ready),
        Route("/metrics", endpoint.metrics_page),
        Route("/api/repoproviders", endpoint.repoproviders),
        Route("/api/status", endpoint.status),
        Route("/builds/{build}", endpoint.build_record),
        Route("/builds/{build}/log", endpoint.build_log),
        Prefix("/", endpoint.static),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(CrossOrigin, allow_origin=settings.allow_origin, paths=_CROSS_ORIGIN),
        ],
        lifespan=endpoint.lifespan,
    )
    app.state.endpoint = endpoint
    return app
