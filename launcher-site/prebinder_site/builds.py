"""Builds on demand: ask the controller, and follow its events; many followers of one build share one upstream stream.

Every follower gets every event from the first. When the controller restarts in mid-build, the stream is taken up
after the last event seen, and people are told to wait; a controller that stays away ends the wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import quote

import httpx
import stamina
import structlog
from httpx_sse import SSEError, aconnect_sse

from prebinder.model.events import BuildEvent, Phase
from prebinder.model.failure import Failure, FailureKind, PrebinderError
from prebinder.model.messages import BuildReply, BuildRequest, Problem
from prebinder.model.spec import Spec
from prebinder_site.events import ClickEvent, failed, from_build, waiting
from prebinder_site.sharing import SharedCalls

log = structlog.get_logger(__name__)

_ASK = httpx.Timeout(30, connect=5)
# The controller sends a comment at least every 25 s.
_FOLLOW = httpx.Timeout(60, connect=5)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
AWAY = "The image has to be built first, and the controller, which builds images, does not answer. Try again soon."


class ControllerRefused(PrebinderError):
    """The controller said no, or is away. `status` is for the event's `status_code`."""

    def __init__(self, failure: Failure, status: int) -> None:
        super().__init__(failure.message)
        self.kind = failure.kind
        self.status = status


class Feed:
    """The events of one build, as they come."""

    def __init__(self, build_id: str) -> None:
        self.build_id = build_id
        self.events: list[ClickEvent] = []
        self.image: str | None = None
        self.ended = False
        self.followers = 0
        self._news = asyncio.Event()

    def add(self, event: ClickEvent) -> None:
        self.events.append(event)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self) -> AsyncGenerator[ClickEvent]:
        """All events from the first, then the new ones as they come, until the end."""
        position = 0
        while True:
            news = self._news
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if self.ended:
                return
            if news is self._news:
                await news.wait()


class Builds:
    """The controller's builds as clicks see them. `linger`: seconds that a stream is kept when nobody follows it."""

    def __init__(self, controller: httpx.AsyncClient, *, patience: float = 600.0, linger: float = 30.0) -> None:
        self._controller = controller
        self._patience = patience
        self._linger = linger
        self._requests: SharedCalls[tuple[Spec, bool], BuildReply] = SharedCalls(ttl=0)
        self._feeds: dict[str, tuple[Feed, asyncio.Task[None]]] = {}

    async def request(self, spec: Spec, *, rebuild: bool = False) -> BuildReply:
        """Ask for a build of what the link names. Raises ControllerRefused."""
        return await self._requests.ask((spec, rebuild), lambda: self._post(spec, rebuild))

    async def _post(self, spec: Spec, rebuild: bool) -> BuildReply:
        provider, _, rest = str(spec).partition("/")
        body = BuildRequest(provider=provider, spec=rest, rebuild=rebuild).model_dump(mode="json")
        try:
            async for attempt in stamina.retry_context(
                on=httpx.TransportError, attempts=3, timeout=5, wait_initial=0.2, wait_jitter=0.1
            ):
                with attempt:
                    response = await self._controller.post("/api/builds", json=body, timeout=_ASK)
        except httpx.HTTPError as error:
            log.warning("controller.away", reason=repr(error))
            raise ControllerRefused(Failure(FailureKind.INTERRUPTED, AWAY), 503) from None
        if response.is_success:
            return BuildReply.model_validate_json(response.content)
        try:
            problem = Problem.model_validate_json(response.content)
        except ValueError:
            problem = Problem(kind=FailureKind.INTERNAL, message=f"The controller answered {response.status_code}.")
        raise ControllerRefused(Failure(problem.kind, problem.message), response.status_code)

    async def follow(self, build_id: str) -> AsyncGenerator[ClickEvent]:
        """The build's events; the last is `built` or `failed`."""
        feed = self._feed(build_id)
        feed.followers += 1
        try:
            async for event in feed.follow():
                yield event
        finally:
            feed.followers -= 1
            if not feed.followers:
                asyncio.get_running_loop().call_later(0 if feed.ended else self._linger, self._drop, feed)

    def image(self, build_id: str) -> str | None:
        """What the Hub starts, once the build's `built` has been seen."""
        found = self._feeds.get(build_id)
        return found[0].image if found else None

    @property
    def upstreams(self) -> int:
        """Streams from the controller that are open now."""
        return sum(not feed.ended for feed, _ in self._feeds.values())

    def _feed(self, build_id: str) -> Feed:
        if found := self._feeds.get(build_id):
            return found[0]
        feed = Feed(build_id)
        self._feeds[build_id] = (feed, asyncio.create_task(self._pump(feed)))
        return feed

    def _drop(self, feed: Feed) -> None:
        found = self._feeds.get(feed.build_id)
        if found and found[0] is feed and not feed.followers:
            del self._feeds[feed.build_id]
            found[1].cancel()

    async def _pump(self, feed: Feed) -> None:
        """Read upstream into the feed until the build's last event, over as many connections as it takes."""
        now = asyncio.get_running_loop().time
        last_seen, pause, away_since = 0, _FIRST_PAUSE, None
        try:
            while True:
                try:
                    async for event in self._events(feed.build_id, last_seen):
                        away_since, pause = None, _FIRST_PAUSE
                        if event.seq <= last_seen:
                            continue
                        last_seen = event.seq
                        if event.phase is Phase.BUILT:
                            feed.image = event.image
                        feed.add(from_build(event, feed.build_id))
                        if event.terminal:
                            return
                    reason = "the stream ended before the build did"
                except (httpx.HTTPError, SSEError, ValueError) as error:
                    reason = repr(error)
                if away_since is None:
                    away_since = now()
                    log.warning("build.stream.broken", build=feed.build_id, after=last_seen, reason=reason)
                    feed.add(waiting("The controller went away; the build goes on when it is back. Waiting…\n"))
                elif now() - away_since > self._patience:
                    feed.add(failed(Failure(FailureKind.INTERRUPTED, AWAY), 503, feed.build_id))
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        except ControllerRefused as refused:
            feed.add(failed(refused.failure(), refused.status))
        finally:
            feed.end()

    async def _events(self, build_id: str, after: int) -> AsyncGenerator[BuildEvent]:
        headers = {"Last-Event-ID": str(after)} if after else {}
        path = f"/api/builds/{quote(build_id, safe='')}/events"
        async with aconnect_sse(self._controller, "GET", path, headers=headers, timeout=_FOLLOW) as source:
            if source.response.status_code in (401, 403, 404):
                message = "The controller does not know this build any more. Click again to build it."
                raise ControllerRefused(Failure(FailureKind.INTERRUPTED, message), source.response.status_code)
            source.response.raise_for_status()
            async for event in source.aiter_sse():
                yield BuildEvent.model_validate_json(event.data)

    async def aclose(self) -> None:
        await self._requests.aclose()
        tasks = [task for _, task in self._feeds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
