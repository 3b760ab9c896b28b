"""Builds as Jobs: the builder of `builder.kind: kubernetes`.

Guarantees:
- One image, one Job: creating what exists is success when it is ours, and a clear failure when it is not. A Job that an
  earlier attempt left is removed first.
- A build outlives the controller: `detach` lets go of it, and a resumed order goes on with the Job that is there, its
  log from the first line. It is deleted when it is cancelled, and when this module gives it up.
- What the cluster needs time for (quota, a node, its API server) is waited out and said; what ends a build is told by
  kind (`failures.py`).
- An image counts as built when the registry shows the digest that the push container pushed.
- Talk about waiting comes before the first line of the log and never of a resumed build, so that reconcile/attempt.py
  can tell what a journal holds already.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from prebinder.builders.base import BuildOrder, Progress
from prebinder.builders.kubernetes import failures
from prebinder.builders.kubernetes.api import Api, ApiAway, ApiRefused, Object
from prebinder.builders.kubernetes.follow import follow_log
from prebinder.builders.kubernetes.log import BuildLog
from prebinder.builders.kubernetes.manifest import make_build_job
from prebinder.builders.kubernetes.names import ATTEMPT, BUILD, IMAGE, INSTANCE, job_name, repository_key, selector
from prebinder.builders.kubernetes.watch import Seen, Watch
from prebinder.config.models import Configuration
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, EngineError, Failure, FailureKind, RegistryError
from prebinder.model.images import ImageName

log = structlog.get_logger(__name__)

DigestOf = Callable[[ImageName], Awaitable[str | None]]
"""The digest that the registry shows for an image. Raises RegistryError."""

_MANAGED_BY = "app.kubernetes.io/managed-by"
_PAUSES = (0.5, 15.0)
_QUIET = 3.0
_LOOK = 20.0
_SYNC_SECONDS = 10.0
_CANCEL_SECONDS = 5.0
_DELETE_ATTEMPTS = 20
_REGISTRY_ATTEMPTS = 4
_HEALTH_SECONDS = 30.0


@dataclass(slots=True)
class _Run:
    """One followed build."""

    order: BuildOrder
    name: str
    uid: str = ""
    known: bool = False
    """Whether the watch has shown the Job."""
    over: bool = False
    """Whether the Job has ended, so that nothing of it is left to delete."""
    log: BuildLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = BuildLog(self.order)


class KubernetesBuilder:
    """Builder on a cluster; see the module. `adopt` starts it, `aclose` ends it."""

    keeps_running = True

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        digest_of: DigestOf,
        *,
        connect: Callable[[str | None], Awaitable[Api]] = Api.connect,
        patience: float = 60.0,
    ) -> None:
        """`configuration` is the one in force now (namespace and instance are read once). A pod that cannot start for
        a reason that waiting will hardly mend (its image, a missing Secret) is given up after `patience` seconds."""
        self._configuration = configuration
        self._digest_of = digest_of
        self._connect = connect
        self._patience = patience
        kubernetes = configuration().builder.kubernetes
        self._namespace, self._instance = kubernetes.namespace, kubernetes.instance
        self._api: Api | None = None
        self._watch: Watch | None = None
        self._starting = asyncio.Lock()
        self._detached = False
        self._deletions: set[asyncio.Task[None]] = set()
        self._reached = float("-inf")

    async def adopt(self) -> None:
        """Connect, and learn what runs. Raises EngineError when the API server does not answer; it is tried further."""
        _, watch = await self._started()
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await watch.synced()
        except TimeoutError:
            raise watch.away or EngineError("The cluster's API server does not answer.") from None

    async def aclose(self) -> None:
        """Let go of the cluster; builds go on."""
        self.detach()
        if self._deletions:
            await asyncio.wait(self._deletions, timeout=_CANCEL_SECONDS)
            for task in self._deletions:
                task.cancel()
        if self._watch is not None:
            await self._watch.aclose()
        if self._api is not None:
            await self._api.aclose()

    def detach(self) -> None:
        """From now on closing a build's iterator leaves its Job running."""
        self._detached = True

    async def health(self) -> None:
        """Raises EngineError when nothing can be built now."""
        api, watch = await self._started()
        if (away := watch.away) is not None:
            raise away
        now = asyncio.get_running_loop().time()
        if now - self._reached > _HEALTH_SECONDS:
            await api.reachable()
            self._reached = now

    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        """Run one build; see `Builder.build`. Raises BuildFailed."""
        run = _Run(order, job_name(self._instance, order.image))
        api, watch = await self._started()
        try:
            for part in (self._submit, self._follow):
                async with contextlib.aclosing(part(run, api, watch)) as stream:
                    async for progress in stream:
                        yield progress
            await self._see_image(run, watch)
        finally:
            if not run.over and not self._detached:
                await self._give_up(run, api)

    # The Job

    async def _submit(self, run: _Run, api: Api, watch: Watch) -> AsyncGenerator[Progress, None]:
        """Create the Job or find it."""
        if run.order.resumed:
            await self._find(run, api, watch)
            return
        configuration = self._configuration()
        kubernetes = configuration.builder.kubernetes
        manifest = make_build_job(
            run.order,
            kubernetes,
            configuration.registry,
            all_providers="all" in configuration.builder.content_providers,
            prefer_node=watch.node_of(repository_key(run.order.repository)),
        )
        end = asyncio.get_running_loop().time() + kubernetes.pending_limit
        said, pause = "", _PAUSES[0]
        while True:
            try:
                made = await api.create_job(manifest)
                run.uid = made["metadata"]["uid"]
                _see_user_namespace(manifest, made)
                return
            except ApiAway as error:
                words = f"{error} It is asked again."
            except ApiRefused as error:
                if error.reason == "AlreadyExists":
                    if await self._take_over(run, api, watch):
                        return
                    words = "An earlier Job of this image is still going; the build waits for it."
                elif error.status == 403 and "exceeded quota" in str(error):
                    words = f"The cluster's quota is used up; the build waits for its turn: {error}"
                else:
                    problem = f"The cluster does not take the build's Job: {error}"
                    raise BuildFailed(Failure(FailureKind.ENGINE, problem)) from None
            if asyncio.get_running_loop().time() > end:
                raise BuildFailed(Failure(FailureKind.ENGINE, words)) from None
            if words != said:
                said = words
                yield Progress(Phase.WAITING, words + "\n")
            await asyncio.sleep(pause * random.uniform(0.7, 1.0))  # noqa: S311
            pause = min(pause * 2, _PAUSES[1])

    async def _find(self, run: _Run, api: Api, watch: Watch) -> None:
        """The Job of an attempt that an earlier controller began. Raises BuildFailed of kind INTERRUPTED."""
        await watch.synced()
        job = watch.seen(run.name).job
        if job is None or not self._is_ours(job, run.order):
            run.over = True
            message = "The controller stopped in mid-build, and the cluster has nothing of the build any more."
            raise BuildFailed(Failure(FailureKind.INTERRUPTED, message))
        run.uid, run.known = job["metadata"]["uid"], True

    async def _take_over(self, run: _Run, api: Api, watch: Watch) -> bool:
        """A Job of that name exists: go on with it (True), or remove it and create another (False)."""
        try:
            turn = watch.seen(run.name).turn
            job = await api.job(run.name)
        except ApiAway:
            return False
        if job is None:
            return False
        metadata = job["metadata"]
        if not self._is_ours(job, run.order):
            run.over = True
            raise BuildFailed(
                Failure(
                    FailureKind.ENGINE,
                    f"The namespace {api.namespace} has a Job {run.name} that is not this Prebinder's. "
                    "Delete it, or set builder.kubernetes.instance to another name.",
                )
            )
        labels = metadata.get("labels", {})
        same_build = labels.get(BUILD) == run.order.id
        pod = watch.seen(run.name).pod(metadata["uid"])
        done = failures.job_done(job) or (pod is not None and failures.over(pod))
        this = labels.get(ATTEMPT) == str(run.order.attempt) if same_build else not done
        if "deletionTimestamp" not in metadata and this:
            run.uid = metadata["uid"]
            return True
        # What an earlier attempt left, or is going already.
        with contextlib.suppress(ApiAway):
            await api.delete_job(run.name, metadata["uid"])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await watch.changed(run.name, turn)
        return False

    def _is_ours(self, job: Object, order: BuildOrder) -> bool:
        labels, annotations = job["metadata"].get("labels") or {}, job["metadata"].get("annotations") or {}
        return (
            labels.get(_MANAGED_BY) == "prebinder"
            and labels.get(INSTANCE) == self._instance
            and annotations.get(IMAGE) == str(order.image)
        )

    # Its pod

    async def _follow(self, run: _Run, api: Api, watch: Watch) -> AsyncGenerator[Progress, None]:
        """From the created Job to the pod's end. Raises BuildFailed."""
        async with contextlib.aclosing(self._until_begun(run, api, watch)) as waiting:
            async for progress in waiting:
                yield progress
        pod = watch.seen(run.name).pod(run.uid)
        for container in failures.container_names(pod) if pod else ():
            if not await self._until(run, watch, lambda pod, name=container: failures.begun(pod, name)):  # type: ignore[misc]
                break
            stream = follow_log(api, watch, run.name, run.uid, container)
            async with contextlib.aclosing(stream):
                async for chunk in stream:
                    for progress in run.log.feed(chunk):
                        yield progress
            for progress in run.log.end():
                yield progress
            if not await self._until(run, watch, lambda pod, name=container: failures.ended(pod, name) is not None):  # type: ignore[misc]
                break
        await self._until(run, watch, lambda pod: False)
        self._judge(run, watch.seen(run.name))

    async def _until_begun(self, run: _Run, api: Api, watch: Watch) -> AsyncGenerator[Progress, None]:
        """Until a container of the pod runs or has run, or there will be none; says what it waits for."""
        loop = asyncio.get_running_loop()
        kubernetes = self._configuration().builder.kubernetes
        end, quiet_until = loop.time() + kubernetes.pending_limit, loop.time() + _QUIET
        said, stuck_since, looked = "", None, None
        while True:
            seen = watch.seen(run.name)
            pod = seen.pod(run.uid)
            if pod and (failures.over(pod) or any(failures.begun(pod, c) for c in failures.container_names(pod))):
                return
            if await self._job_gone(run, seen, api) or failures.job_done(seen.job):
                return
            now = loop.time()
            wait = failures.waits_for(pod) if pod else None
            looks = wait is None
            if looks and now > quiet_until:
                looked = await (self._podless(run, seen, api) if pod is None else self._unready(pod, api))
                quiet_until = now + _LOOK
            wait = wait or looked
            if wait is not None and wait.words != said and not run.order.resumed:
                said = wait.words
                yield Progress(Phase.WAITING, wait.words + "\n")
            stuck_since = (stuck_since or now) if wait is not None and wait.stuck else None
            if stuck_since is not None and now - stuck_since > self._patience:
                raise BuildFailed(Failure(FailureKind.ENGINE, said or "The build's pod cannot start."))
            if (seen.job or {}).get("spec", {}).get("suspend"):
                end = now + kubernetes.pending_limit
            elif now > end:
                waited = f"The build did not start within {kubernetes.pending_limit:.0f} s. {said}"
                raise BuildFailed(Failure(FailureKind.ENGINE, waited.strip()))
            wake = min(end, quiet_until if looks else end, (stuck_since + self._patience) if stuck_since else end)
            await self._change(run, watch, seen.turn, wake - now)

    async def _podless(self, run: _Run, seen: Seen, api: Api) -> failures.Wait | None:
        """Why a Job has no pod: what else manages Jobs holds it back, or the cluster refuses its pod (a quota)."""
        if (seen.job or {}).get("spec", {}).get("suspend"):
            return failures.Wait("The build's Job is suspended; it waits for admission by the cluster.")
        try:
            said = await api.warnings_about("Job", run.name)
        except (ApiAway, ApiRefused):
            return None
        return failures.Wait(f"The cluster does not start the build's pod yet: {said[-1][:300]}") if said else None

    async def _unready(self, pod: Object, api: Api) -> failures.Wait | None:
        """Why the node does not start a pod, where only the cluster's events say it (a missing Secret)."""
        try:
            said = await api.warnings_about("Pod", pod["metadata"]["name"])
        except (ApiAway, ApiRefused):
            return None
        return failures.waits_by_events(said)

    async def _until(self, run: _Run, watch: Watch, true: Callable[[Object], bool]) -> bool:
        """Wait for something to be true of the pod; False when the pod is over, gone, or its Job failed without it."""
        while True:
            seen = watch.seen(run.name)
            pod = seen.pod(run.uid)
            if pod is None:
                return False
            if true(pod):
                return True
            if failures.over(pod) or seen.job is None:
                return False
            await self._change(run, watch, seen.turn, None)

    async def _change(self, run: _Run, watch: Watch, turn: int, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(seconds, 0.0) + 0.01):
                await watch.changed(run.name, turn)

    async def _job_gone(self, run: _Run, seen: Seen, api: Api) -> bool:
        """Whether the Job that was there is there no more. The watch may not have shown it yet."""
        if seen.job is not None and seen.job["metadata"]["uid"] == run.uid:
            run.known = True
            return False
        return run.known

    def _judge(self, run: _Run, seen: Seen) -> None:
        """The end. Raises BuildFailed, unless the pod did all it should."""
        pod = seen.pod(run.uid)
        run.over = failures.over(pod) if pod else seen.job is None
        if pod is None or not failures.over(pod):
            gone = "The build's Job was deleted from the cluster."
            if seen.job:
                gone = "The build's pod was deleted from the cluster, or its node is gone."
            if (seen.job or {}).get("spec", {}).get("suspend"):
                gone = "The cluster suspended the build's Job in the middle."
            raise BuildFailed(failures.job_failure(seen.job) or Failure(FailureKind.ENGINE, gone))
        if failure := failures.pod_failure(pod, run.order, run.log.failed, run.log.tail):
            raise BuildFailed(failure)

    async def _see_image(self, run: _Run, watch: Watch) -> None:
        """The registry must show what was pushed."""
        pod = watch.seen(run.name).pod(run.uid)
        end = failures.ended(pod, failures.container_names(pod)[-1]) if pod else None
        pushed = failures.report(end.message).digest if end else None
        if pushed is None:
            message = "The push ended well, but did not say what it pushed."
            raise BuildFailed(Failure(FailureKind.REGISTRY, message))
        found = await self._registry_digest(run.order.image)
        if found != pushed:
            raise BuildFailed(
                Failure(
                    FailureKind.REFUSED if found else FailureKind.REGISTRY,
                    f"The registry shows {found or 'no image'} where {pushed} was pushed. The image is not used; "
                    "ask the operator who else writes to that registry.",
                )
            )

    async def _registry_digest(self, image: ImageName) -> str | None:
        pause = _PAUSES[0]
        for attempt in range(_REGISTRY_ATTEMPTS):
            try:
                return await self._digest_of(image)
            except RegistryError as error:
                if attempt + 1 == _REGISTRY_ATTEMPTS:
                    raise BuildFailed(Failure(FailureKind.REGISTRY, str(error))) from None
            await asyncio.sleep(pause)
            pause *= 2
        return None

    # The end of what we give up

    async def _give_up(self, run: _Run, api: Api) -> None:
        """Delete the Job; when the API server is away, further on in the background."""
        task = asyncio.create_task(self._delete(run, api), name=f"delete {run.name}")
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)
        await asyncio.wait([task], timeout=_CANCEL_SECONDS)

    async def _delete(self, run: _Run, api: Api) -> None:
        pause = _PAUSES[0]
        for _ in range(_DELETE_ATTEMPTS):
            try:
                job = await api.job(run.name)
                if job is None:
                    return
                metadata = job["metadata"]
                if metadata["uid"] == run.uid or (not run.uid and metadata["labels"].get(BUILD) == run.order.id):
                    await api.delete_job(run.name, metadata["uid"])
                return
            except ApiAway:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSES[1])
            except ApiRefused as error:
                log.error("job.delete", job=run.name, problem=str(error))
                return
        log.error("job.delete", job=run.name, problem="the API server is away; the Job ends by its own time limit")

    async def _started(self) -> tuple[Api, Watch]:
        async with self._starting:
            if self._api is None or self._watch is None:
                self._api = await self._connect(self._namespace)
                self._watch = Watch(self._api, selector(self._instance))
                self._watch.start()
            return self._api, self._watch


def _see_user_namespace(wanted: Object, made: Object) -> None:
    """API servers that know no user namespaces drop the wish for one without a word (core/v1 `hostUsers`, before 1.33).

    Raises BuildFailed.
    """
    asked, got = (job["spec"]["template"]["spec"].get("hostUsers") for job in (wanted, made))
    if asked is False and got is not False:
        message = (
            "The cluster gives pods no user namespaces of their own (Kubernetes 1.33 does); the build would be root on "
            "its node, so it is not run. Update the cluster, or see builder.kubernetes.user_namespaces."
        )
        raise BuildFailed(Failure(FailureKind.ENGINE, message))
