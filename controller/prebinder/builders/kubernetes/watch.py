"""One watch over the Jobs and pods of all builds: what the cluster knows, kept here, so that nobody asks for it.

Guarantees, each of them tested:
- What is kept here becomes what the API server has, whatever happens in between: a watch that ends, breaks off or
  expires (410) goes on or begins anew with a list; a list comes every `RESYNC` seconds anyway.
- Whoever waits for a Job is woken by a change of it or of its pods, not by a clock.
- While the API server is away the last state stands, and `away` says why. Attempts to reach it come with a growing
  pause, without end; so they do when it says what nobody foresaw.
- A pod that was told to go and does not, because its node is gone for good, is lost after a while: as if deleted.
- Only what is read is kept: about 2 kB a build.

The shape is that of client-go's reflector: list, then watch from the list's resource version, with bookmarks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from prebinder.builders.kubernetes.api import JOBS, PODS, Api, ApiAway, ApiRefused, Expired, Object
from prebinder.builders.kubernetes.names import IMAGE, REPOSITORY
from prebinder.model.failure import EngineError

log = structlog.get_logger(__name__)

RESYNC = 1800.0
_WATCH_SECONDS = (420, 600)
_IDLE_SECONDS = 100.0  # bookmarks come about once a minute
_PAUSE = 0.25
_PAUSE_MOST = 15.0
_LOST_SECONDS = 60.0  # the grace period of our pods is 3
_CONTROLLER_UID = "batch.kubernetes.io/controller-uid"
_JOB_NAME = "batch.kubernetes.io/job-name"
_CONTAINER = ("name", "state", "image", "containerID")
_STATUS_LISTS = {
    "conditions": ("type", "status", "reason", "message"),
    "initContainerStatuses": _CONTAINER,
    "containerStatuses": _CONTAINER,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A Job and its pods, oldest first, as last told. `turn` grows with each change; 0 when nothing is known."""

    job: Object | None
    pods: tuple[Object, ...]
    turn: int

    def pod(self, uid: str) -> Object | None:
        """The newest pod of the Job with this uid; an earlier Job of the same name may have left others."""
        ours = [pod for pod in self.pods if pod["metadata"].get("labels", {}).get(_CONTROLLER_UID) == uid]
        return ours[-1] if ours else None


@dataclass(slots=True)
class _Place:
    """What concerns one Job name."""

    job: Object | None = None
    pods: dict[str, Object] = field(default_factory=dict)
    turn: int = 0
    waiting: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self, turn: int) -> None:
        self.turn = turn
        self.changed.set()
        self.changed = asyncio.Event()


class Watch:
    """Start it once, close it once."""

    def __init__(self, api: Api, selector: str, *, resync: float = RESYNC, lost_after: float = _LOST_SECONDS) -> None:
        self._api = api
        self._selector = selector
        self._resync = resync
        self._places: dict[str, _Place] = {}
        self._listed = {JOBS: False, PODS: False}
        self._away: dict[tuple[str, str], EngineError] = {}
        self._synced = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._nodes: dict[str, tuple[str, str]] = {}
        self._turns = itertools.count(1)
        self._lost_after = lost_after
        self._going: dict[str, asyncio.TimerHandle] = {}

    def start(self) -> None:
        """Begin to watch."""
        self._tasks = [asyncio.create_task(self._follow(kind), name=f"watch {kind[1]}") for kind in (JOBS, PODS)]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        for timer in self._going.values():
            timer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def away(self) -> EngineError | None:
        """Why nothing is heard from the API server now; None while it is."""
        return next(iter(self._away.values()), None)

    async def synced(self) -> None:
        """Return once everything was listed for the first time."""
        await self._synced.wait()

    def seen(self, name: str) -> Seen:
        """What is known of a Job and its pods."""
        place = self._places.get(name) or _Place()
        pods = sorted(place.pods.values(), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
        return Seen(place.job, tuple(pods), place.turn)

    async def changed(self, name: str, turn: int) -> None:
        """Return at the first change of a Job or its pods after `turn` (see `Seen`)."""
        if turn and name not in self._places:
            return  # it went meanwhile
        place = self._places.setdefault(name, _Place())
        place.waiting += 1
        try:
            while place.turn <= turn:
                await place.changed.wait()
        finally:
            place.waiting -= 1
            self._forget(name)

    def node_of(self, repository: str) -> str | None:
        """The node on which a repository (its label's value) was built last, as far as is remembered."""
        return self._nodes.get(repository, ("", None))[1]

    # How

    async def _follow(self, kind: tuple[str, str]) -> None:
        loop = asyncio.get_running_loop()
        pause = _PAUSE
        while True:
            listed = None
            try:
                version = await self._list(kind)
                listed = loop.time()
                async with asyncio.timeout(self._resync):
                    while True:
                        version = await self._watch(kind, version)
                        pause = _PAUSE
            except TimeoutError:
                continue  # time for a list
            except Expired:
                log.info("watch.expired", of=kind[1])
            except (ApiAway, ApiRefused) as error:
                if kind not in self._away:
                    log.warning("watch.away", of=kind[1], problem=str(error))
                self._away[kind] = error
            except Exception as error:
                log.exception("watch.defect", of=kind[1])
                self._away[kind] = EngineError(
                    f"What the cluster says of its {kind[1]} cannot be followed: a defect of Prebinder "
                    f"({type(error).__name__}). The controller's log says more."
                )
            if listed is not None and loop.time() - listed > _PAUSE_MOST:
                pause = _PAUSE  # it went well for a while
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, _PAUSE_MOST)

    async def _list(self, kind: tuple[str, str]) -> str:
        version, keep = "", set[str]()
        async with contextlib.aclosing(self._api.pages(kind, self._selector)) as pages:
            async for items, at in pages:
                version = at
                keep |= {item["metadata"]["name"] for item in items}
                for item in items:
                    self._put(kind, item)
        for name, place in list(self._places.items()):
            have = place.pods.keys() if kind == PODS else ({name} if place.job else set())
            for gone in have - keep:
                self._remove(kind, name, gone)
        self._heard(kind)
        self._listed[kind] = True
        if all(self._listed.values()):
            self._synced.set()
        return version

    async def _watch(self, kind: tuple[str, str], version: str) -> str:
        """Until the server ends it; the resource version to go on from."""
        begun = asyncio.get_running_loop().time()
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311
        stream = self._api.watch(kind, self._selector, version, seconds=seconds, idle=_IDLE_SECONDS)
        async with contextlib.aclosing(stream):
            async for type_, item in stream:
                self._heard(kind)
                version = item["metadata"]["resourceVersion"]
                if type_ == "DELETED":
                    self._remove(kind, _job_of(kind, item), item["metadata"]["name"])
                elif type_ != "BOOKMARK":
                    self._put(kind, item)
        if asyncio.get_running_loop().time() - begun < _PAUSE:
            await asyncio.sleep(_PAUSE)  # a server that ends every watch at once is not asked without end
        return version

    def _heard(self, kind: tuple[str, str]) -> None:
        if self._away.pop(kind, None):
            log.info("watch.back", of=kind[1])

    def _put(self, kind: tuple[str, str], item: Object) -> None:
        name = _job_of(kind, item)
        place = self._places.setdefault(name, _Place())
        kept = _trimmed(item)
        key = kept["metadata"]["name"]
        before = place.job if kind == JOBS else place.pods.get(key)
        if before is not None and before["metadata"]["resourceVersion"] == kept["metadata"]["resourceVersion"]:
            return
        if kind == JOBS:
            place.job = kept
        else:
            place.pods[key] = kept
            if kept["metadata"].get("deletionTimestamp") and key not in self._going:
                self._going[key] = asyncio.get_running_loop().call_later(self._lost_after, self._lose, name, key)
            self._remember_node(kept)
        place.wake(next(self._turns))

    def _remove(self, kind: tuple[str, str], name: str, key: str) -> None:
        if (place := self._places.get(name)) is None:
            return
        if kind == JOBS:
            place.job = None
        else:
            place.pods.pop(key, None)
            if going := self._going.pop(key, None):
                going.cancel()
        place.wake(next(self._turns))
        self._forget(name)

    def _lose(self, name: str, key: str) -> None:
        log.warning("pod.lost", pod=key)
        self._remove(PODS, name, key)

    def _forget(self, name: str) -> None:
        place = self._places.get(name)
        if place and place.job is None and not place.pods and not place.waiting:
            del self._places[name]

    def _remember_node(self, pod: Object) -> None:
        repository = pod["metadata"].get("labels", {}).get(REPOSITORY)
        node, created = pod["spec"].get("nodeName"), str(pod["metadata"].get("creationTimestamp"))
        if repository and node and created >= self._nodes.get(repository, ("", ""))[0]:
            self._nodes[repository] = (created, node)


def _job_of(kind: tuple[str, str], item: Object) -> str:
    metadata = item["metadata"]
    return str(metadata["name"] if kind == JOBS else metadata.get("labels", {}).get(_JOB_NAME, ""))


def _trimmed(item: Object) -> Object:
    """What is read of a Job or pod. The rest (templates, managed fields, resources, mounts) is nine tenths of it."""
    metadata, spec, status = item["metadata"], item.get("spec", {}), item.get("status", {})
    kept = _only(metadata, ("name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels"))
    kept["annotations"] = _only(metadata.get("annotations") or {}, (IMAGE,))
    short = _only(status, ("phase", "reason", "message"))
    for key, fields in _STATUS_LISTS.items():
        if key in status:
            short[key] = [_only(entry, fields) for entry in status[key] or ()]
    return {
        "metadata": kept,
        "spec": {
            **_only(spec, ("suspend", "nodeName")),
            **{key: [_only(c, ("name",)) for c in spec.get(key) or ()] for key in ("initContainers", "containers")},
        },
        "status": short,
    }


def _only(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> Object:
    return {key: mapping[key] for key in keys if key in mapping}
