"""Keeps likely images on the nodes of people's servers: looks, plans, pulls one image onto one node at a time.

Guarantees:
- At most one pod of an instance pulls at any moment, so that clicks find the network and the registry free.
- It holds no state that matters: a restarted controller clears away the pods of the one before and looks anew.
- What fails is tried again with a growing pause, and told in the status; nothing that fails here reaches a click.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import structlog

from prebinder.builders.kubernetes.api import PODS, Api, ApiAway, ApiRefused, Expired
from prebinder.config.prepull import PrepullConfig
from prebinder.model.failure import PrebinderError
from prebinder.model.messages import PrepullNode, PrepullStatus
from prebinder.prepull.plan import Node, Pull, Wanted, held, missing, nodes_for_servers
from prebinder.prepull.pods import make_pull_pod, outcome, pod_name, selector

log = structlog.get_logger(__name__)

_BELIEVED = 3600.0
"""For so long a pull that came through counts, although the node does not list the image; then it is looked at anew."""
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 6 * 3600.0
_IDLE = 120.0


@dataclass(slots=True)
class _Failure:
    times: int
    again_at: float
    reason: str


class Prepuller:
    """`config` is asked at each look, so that a changed file counts at once; `images` gives what should be there."""

    def __init__(
        self,
        api: Api,
        instance: str,
        config: Callable[[], PrepullConfig],
        images: Callable[[], Awaitable[Sequence[Wanted]]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._api = api
        self._instance = instance
        self._config = config
        self._images = images
        self._clock = clock
        self._changed = asyncio.Event()
        self._believed: dict[Pull, float] = {}
        self._failed: dict[Pull, _Failure] = {}
        self._status = PrepullStatus(enabled=False)

    def look_again(self) -> None:
        """The catalogue or the configuration changed: look now and not at the next turn."""
        self._changed.set()

    @property
    def status(self) -> PrepullStatus:
        """What `prebinder status` shows."""
        return self._status

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            config = self._config()
            self._changed.clear()
            try:
                if config.enabled:
                    await self._clear()
                    await self._turn(config)
                else:
                    self._status = PrepullStatus(enabled=False)
            except PrebinderError as error:
                log.warning("prepull.failed", reason=str(error))
                self._tell_problem(str(error))
            except Exception as error:
                log.exception("prepull.defect")
                self._tell_problem(f"A defect of Prebinder: {type(error).__name__}. The controller's log says more.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(config.every):
                    await self._changed.wait()

    async def _turn(self, config: PrepullConfig) -> None:
        """Pull until nothing is missing, or something changed."""
        while not self._changed.is_set():
            images = await self._images()
            nodes = await self._nodes(config)
            pulls = missing(images, nodes, self._now_believed(), config.budget)
            now = self._clock()
            due = [p for p in pulls if p not in self._failed or self._failed[p].again_at <= now]
            self._tell(images, nodes, due[0] if due else None)
            if not due:
                return
            await self._pull(due[0], config)

    async def _nodes(self, config: PrepullConfig) -> tuple[Node, ...]:
        items = (await self._api.ask("GET", "api/v1/nodes")).get("items") or []
        return nodes_for_servers(items, config)

    async def _pull(self, pull: Pull, config: PrepullConfig) -> None:
        """One image onto one node, to its end."""
        name = pod_name(self._instance, pull)
        log.info("prepull.begun", image=pull.image, node=pull.node)
        try:
            async with asyncio.timeout(config.time + 30):
                with contextlib.suppress(_There):
                    await self._create(pull, config)
                came, reason = await self._ended(name)
        except TimeoutError:
            came, reason = False, "longer than prepull.time"
        finally:
            await self._delete(name)
        if came:
            self._failed.pop(pull, None)
            self._believed[pull] = self._clock() + _BELIEVED
            log.info("prepull.done", image=pull.image, node=pull.node)
        else:
            times = self._failed[pull].times + 1 if pull in self._failed else 1
            pause = min(_FIRST_PAUSE * 2 ** (times - 1), _LONGEST_PAUSE)
            self._failed[pull] = _Failure(times, self._clock() + pause, reason)
            log.warning("prepull.not_done", image=pull.image, node=pull.node, reason=reason, again_in=pause)

    async def _create(self, pull: Pull, config: PrepullConfig) -> None:
        try:
            await self._api.ask("POST", self._path(), body=make_pull_pod(pull, config, self._instance))
        except ApiRefused as error:
            if error.reason == "AlreadyExists":
                raise _There from None
            raise

    async def _ended(self, name: str) -> tuple[bool, str]:
        """What became of the pod. One watch; asked anew when it breaks off."""
        while True:
            try:
                pods, version = await self._api.all(PODS, selector(self._instance))
                pod = next((p for p in pods if p["metadata"]["name"] == name), None)
                if pod is None:
                    return False, "somebody deleted the pod"
                if found := outcome(pod):
                    return found
                watch = self._api.watch(PODS, selector(self._instance), version, seconds=300, idle=_IDLE)
                async with contextlib.aclosing(watch) as changes:
                    async for kind, pod in changes:
                        if pod["metadata"].get("name") != name:
                            continue
                        if kind == "DELETED":
                            return False, "somebody deleted the pod"
                        if found := outcome(pod):
                            return found
            except (ApiAway, Expired) as error:
                log.info("prepull.watch_again", reason=str(error))
                await asyncio.sleep(1)

    async def _clear(self) -> None:
        """What an earlier controller, or a pull that was broken off, left behind."""
        pods, _ = await self._api.all(PODS, selector(self._instance))
        for pod in pods:
            await self._delete(pod["metadata"]["name"])

    async def _delete(self, name: str) -> None:
        try:
            await self._api.ask("DELETE", f"{self._path()}/{name}", body={"gracePeriodSeconds": 0})
        except ApiRefused as error:
            if error.status != 404:
                log.warning("prepull.pod_left", pod=name, reason=str(error))
        except ApiAway as error:
            log.warning("prepull.pod_left", pod=name, reason=str(error))

    def _path(self) -> str:
        return f"api/v1/namespaces/{self._api.namespace}/pods"

    def _now_believed(self) -> frozenset[Pull]:
        now = self._clock()
        self._believed = {pull: until for pull, until in self._believed.items() if until > now}
        return frozenset(self._believed)

    def _tell(self, images: Sequence[Wanted], nodes: Sequence[Node], now: Pull | None) -> None:
        """The status. Failures of images or nodes that nobody wants any more are forgotten."""
        names, on = {w.image for w in images}, {n.name for n in nodes}
        self._failed = {p: f for p, f in self._failed.items() if p.image in names and p.node in on}
        worst = next(iter(self._failed.items()), None)
        believed = frozenset(self._believed)
        self._status = PrepullStatus(
            enabled=True,
            wanted=len(images),
            nodes=tuple(PrepullNode(name=n.name, held=held(images, n, believed)) for n in nodes),
            pulling=f"{now.image} onto {now.node}" if now else None,
            problem=f"{worst[0].image} does not come onto {worst[0].node}: {worst[1].reason}" if worst else None,
        )

    def _tell_problem(self, problem: str) -> None:
        """The status when nothing can be looked at; what was seen before stands."""
        self._status = self._status.model_copy(update={"enabled": True, "problem": problem, "pulling": None})


class _There(Exception):
    """The pod is there already."""
