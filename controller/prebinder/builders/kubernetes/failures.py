"""Why a build's pod failed, or what it waits for: from what the cluster says to a kind and words for people. Pure.

The kind decides whether it is tried again (`model/failure.py`): what the cluster did (nodes lost, pods evicted, images
that cannot be pulled) is `engine`; what the build used up is its own (memory, disk, time). What the build's own steps
said is `builders/verdict.py`'s business.

Sources: core/v1 PodStatus, ContainerState and PodCondition (DisruptionTarget); the kubelet's reasons
(pkg/kubelet/images/types.go, pkg/kubelet/eviction/helpers.go); batch/v1 JobCondition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prebinder.builders.base import BuildOrder
from prebinder.builders.child import ChildFailure
from prebinder.builders.kubernetes.wire import EXIT_LOG, EXIT_ROOT, EXIT_TIMEOUT, PushReport, Role
from prebinder.builders.verdict import judge
from prebinder.model.failure import Failure, FailureKind

Object = dict[str, Any]

_LIMIT = 300
_OWN_DISK = re.compile(
    r"exceeds the (?:total )?limit|exceeded its local ephemeral storage limit|"
    r"usage of EmptyDir volume .* exceeds|ephemeral local storage usage exceeds",
    re.IGNORECASE,
)
_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"})
_NEVER = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_NOT_STARTED = frozenset({"ContainerCannotRun", "StartError", "RunContainerError", "ContainerStatusUnknown"})
_PASSING = frozenset({"PodInitializing", "ContainerCreating"})
_MISSING = re.compile(r'(?:secret|configmap) "[^"]*" not found|references non-existent', re.IGNORECASE)
_EXIT_KILLED = 137
_JOB_ENDS = frozenset({"Complete", "SuccessCriteriaMet", "Failed", "FailureTarget"})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """What a pod waits for. `stuck`: it will hardly get it by waiting."""

    words: str
    stuck: bool = False


def container_names(pod: Object) -> list[str]:
    """A pod's containers, in the order in which they run."""
    spec = pod["spec"]
    return [container["name"] for container in (*(spec.get("initContainers") or ()), *spec["containers"])]


def container_status(pod: Object, name: str) -> Object:
    """What the pod says of a container; empty as long as it says nothing."""
    return next((status for status in _statuses(pod) if status["name"] == name), {})


def ended(pod: Object, name: str) -> Ended | None:
    """How a container ended; None as long as it has not."""
    state = container_status(pod, name).get("state", {}).get("terminated")
    if state is None:
        return None
    return Ended(int(state.get("exitCode", -1)), str(state.get("reason", "")), str(state.get("message", "")))


def begun(pod: Object, name: str) -> bool:
    """Whether a container runs or has run."""
    state = container_status(pod, name).get("state", {})
    return "running" in state or "terminated" in state


def over(pod: Object) -> bool:
    """Whether nothing of the pod runs any more."""
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def waits_for(pod: Object) -> Wait | None:
    """What a pod that has not begun to build waits for; None when that is nothing to speak of."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return Wait(f"No node has room for the build: {_short(scheduled.get('message'))}")
    for status in _statuses(pod):
        waiting = status.get("state", {}).get("waiting")
        reason = str((waiting or {}).get("reason", ""))
        if waiting is None or not reason or reason in _PASSING:
            continue
        said = _short(waiting.get("message"))
        if reason in _IMAGE_REASONS or reason in _NEVER:
            return Wait(f"The node cannot get the builder image {status.get('image', '')}: {said or reason}", True)
        return Wait(f"The node cannot start the build ({reason}): {said}", True)
    return None


def waits_by_events(warnings: Sequence[str]) -> Wait | None:
    """The same from the warnings about a pod that is on a node, oldest first."""
    if not warnings:
        return None
    return Wait(f"The node cannot start the build yet: {_short(warnings[-1])}", bool(_MISSING.search(warnings[-1])))


def job_failure(job: Object | None) -> Failure | None:
    """What a Job says that has failed without a pod that could; None when it has not failed."""
    for condition in (job or {}).get("status", {}).get("conditions") or ():
        if condition.get("type") in ("Failed", "FailureTarget") and condition.get("status") == "True":
            if condition.get("reason") == "DeadlineExceeded":
                return Failure(FailureKind.TIMEOUT, "The build's Job did not end within its time limit.")
            return Failure(
                FailureKind.ENGINE,
                f"The cluster ended the build's Job ({condition.get('reason', 'Failed')}): "
                f"{_short(condition.get('message'))}",
            )
    return None


def job_done(job: Object | None) -> bool:
    """Whether a Job has ended, one way or the other, or is about to."""
    conditions = (job or {}).get("status", {}).get("conditions") or ()
    return any(c.get("type") in _JOB_ENDS and c.get("status") == "True" for c in conditions)


def pod_failure(pod: Object, order: BuildOrder, failed: ChildFailure | None, tail: Sequence[str]) -> Failure | None:
    """Why a pod that is over failed; None when all its containers ended well.

    `failed` and `tail` are the last word and the last lines of the build container's log.
    """
    status = pod["status"]
    if status.get("phase") != "Succeeded" and (failure := _taken(pod, order)):
        return failure
    for name in container_names(pod):
        end = ended(pod, name)
        if end is None:
            if status.get("phase") == "Succeeded":
                continue
            said = _short(status.get("message")) or "it does not say why"
            return Failure(FailureKind.ENGINE, f"The pod ended before the container {name!r} had run: {said}.")
        if end.code != 0 or end.reason == "OOMKilled":
            return _container_failure(name, end, order, failed, tail)
    return None


def report(message: str) -> PushReport:
    """What a container of ours left as its last word."""
    try:
        return PushReport.model_validate_json(message)
    except ValidationError:
        return PushReport(problem=_short(message) or None)


def _taken(pod: Object, order: BuildOrder) -> Failure | None:
    """What the cluster did to the pod."""
    status = pod["status"]
    reason, said = str(status.get("reason", "")), _short(status.get("message"))
    if reason == "DeadlineExceeded":
        return Failure(FailureKind.TIMEOUT, f"The build took longer than {order.time_limit:.0f} s.")
    if reason == "Evicted" and _OWN_DISK.search(said):
        return Failure(FailureKind.DISK, f"The build used more than {_size(order.disk_limit)} of disk.")
    if reason == "Evicted":
        return Failure(FailureKind.ENGINE, f"The node ran short and evicted the build: {said}")
    if reason == "NodeLost":
        return Failure(FailureKind.ENGINE, f"The node of the build was lost: {said}")
    disruption = _condition(pod, "DisruptionTarget")
    if disruption.get("status") == "True":
        words = {
            "PreemptionByScheduler": "A more urgent pod took the place of the build",
            "DeletionByTaintManager": "The node of the build was lost or drained",
            "EvictionByEvictionAPI": "The build was evicted from its node",
            "DeletionByPodGC": "The node of the build is gone",
            "TerminationByKubelet": "The node of the build ended it (shutdown, or short of something)",
        }.get(str(disruption.get("reason")), f"The cluster ended the build ({disruption.get('reason')})")
        return Failure(FailureKind.ENGINE, f"{words}: {_short(disruption.get('message'))}")
    if reason and not any(ended(pod, name) for name in container_names(pod)):
        # Refused by the node: OutOfcpu, NodeAffinity, UnexpectedAdmissionError, Shutdown, …
        return Failure(FailureKind.ENGINE, f"The node refused the build ({reason}): {said}")
    if pod["metadata"].get("deletionTimestamp"):
        return Failure(FailureKind.ENGINE, "The build's pod was deleted from the cluster.")
    return None


def _container_failure(
    name: str, end: Ended, order: BuildOrder, failed: ChildFailure | None, tail: Sequence[str]
) -> Failure:
    if end.reason in _NOT_STARTED:
        return Failure(
            FailureKind.ENGINE, f"The container {name!r} could not run ({end.reason}): {_short(end.message)}"
        )
    if name == Role.BUILD:
        return _build_failure(end, order, failed, tail)
    said = report(end.message)
    if said.repository_fault:
        return Failure(FailureKind.REPOSITORY, said.problem or "What was built cannot be pushed.")
    doing = "be pushed" if name == Role.PUSH else "begin, because the registry does not give what it needs"
    problem = said.problem or (tail[-1] if tail else f"exit code {end.code}")
    if end.reason == "OOMKilled":
        return Failure(FailureKind.ENGINE, f"The container {name!r} ran out of memory.")
    return Failure(FailureKind.REGISTRY, f"The image could not {doing}: {_short(problem)}")


def _build_failure(end: Ended, order: BuildOrder, failed: ChildFailure | None, tail: Sequence[str]) -> Failure:
    if end.code == EXIT_TIMEOUT:
        return Failure(FailureKind.TIMEOUT, f"The build took longer than {order.time_limit:.0f} s.")
    if end.code == EXIT_LOG:
        return Failure(FailureKind.LOG_FLOOD, f"The build wrote more than {_size(order.log_limit)} of log.")
    if end.code == EXIT_ROOT and failed is None:
        said = "The cluster gave the build no user namespace: nothing of it was run, as it would be the node's root."
        return Failure(FailureKind.ENGINE, said)
    if end.reason == "OOMKilled":
        return Failure(FailureKind.MEMORY, f"The build used more than {_size(order.memory_limit)} of memory.")
    if end.code == _EXIT_KILLED and failed is None:
        return Failure(
            FailureKind.ENGINE, "The build was killed from outside: its pod was deleted, or its node stopped."
        )
    return judge(failed, end.code, tail, order.memory_limit)


def _statuses(pod: Object) -> Iterator[Object]:
    status = pod["status"]
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _condition(pod: Object, type_: str) -> Object:
    conditions = pod["status"].get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == type_), {})


def _short(text: object) -> str:
    said = " ".join(str(text or "").split()).rstrip(".")
    return said if len(said) <= _LIMIT else said[: _LIMIT - 1] + "…"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 10**9 else f"{number / 1e6:.0f} MB"
