"""What the cluster says of a pod, as kinds and words: a table."""

from __future__ import annotations

from typing import Any

import pytest

from prebinder.builders.child import ChildFailure, Step
from prebinder.builders.kubernetes import failures
from prebinder.model.failure import Disposition, FailureKind
from tests.support.scripted_pod import DIGEST, scripted_order

ORDER = scripted_order("", memory_limit=2 * 10**9, time_limit=1800.0, disk_limit=10**10)


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


DONE = terminated(0, "Completed")
RUNNING: dict[str, Any] = {"state": {"running": {}}}


def pod(
    build: dict[str, Any] | None = None,
    push: dict[str, Any] | None = None,
    *,
    phase: str = "Failed",
    deleted: bool = False,
    fetch: dict[str, Any] | None = None,
    **status: Any,
) -> dict[str, Any]:
    first = [{"name": "fetch", **(fetch or DONE)}, *([{"name": "build", **build}] if build else [])]
    return {
        "metadata": {"name": "p", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {})},
        "spec": {"initContainers": [{"name": "fetch"}, {"name": "build"}], "containers": [{"name": "push"}]},
        "status": {
            "phase": phase,
            "initContainerStatuses": first,
            "containerStatuses": [{"name": "push", **push}] if push else [],
            **status,
        },
    }


def disrupted(reason: str, message: str = "") -> list[dict[str, Any]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]


OWN_DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 10G. "
EMPTY_DIR = 'Usage of EmptyDir volume "storage" exceeds the limit "10G". '
SHORT_NODE = "The node was low on resource: ephemeral-storage. Threshold quantity: 1, available: 0. "


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        (pod(terminated(137, "OOMKilled")), FailureKind.MEMORY, "more than 2.0 GB of memory"),
        (pod(terminated(123)), FailureKind.ENGINE, "no user namespace"),
        (pod(terminated(124)), FailureKind.TIMEOUT, "longer than 1800 s"),
        (pod(terminated(125)), FailureKind.LOG_FLOOD, "of log"),
        (pod(terminated(137)), FailureKind.ENGINE, "killed from outside"),
        (pod(terminated(128, "StartError", "no runc")), FailureKind.ENGINE, "no runc"),
        (pod(terminated(137, "ContainerStatusUnknown", "gone")), FailureKind.ENGINE, "ContainerStatusUnknown"),
        (pod(reason="DeadlineExceeded"), FailureKind.TIMEOUT, "longer than 1800 s"),
        (pod(reason="Evicted", message=OWN_DISK), FailureKind.DISK, "more than 10.0 GB of disk"),
        (pod(reason="Evicted", message=EMPTY_DIR), FailureKind.DISK, "more than 10.0 GB of disk"),
        (pod(reason="Evicted", message=SHORT_NODE), FailureKind.ENGINE, "low on resource"),
        (pod(reason="NodeLost", message="Node n is unresponsive"), FailureKind.ENGINE, "unresponsive"),
        (pod(reason="OutOfcpu", message="not enough", fetch=waiting("")), FailureKind.ENGINE, "OutOfcpu"),
        (pod(terminated(143), conditions=disrupted("PreemptionByScheduler")), FailureKind.ENGINE, "more urgent"),
        (pod(terminated(143), conditions=disrupted("DeletionByTaintManager")), FailureKind.ENGINE, "lost or drained"),
        (pod(terminated(143), conditions=disrupted("TerminationByKubelet", "low")), FailureKind.ENGINE, "low"),
        (pod(terminated(143), deleted=True), FailureKind.ENGINE, "pod was deleted"),
        (pod(DONE, terminated(1, message='{"problem":"500 from r"}')), FailureKind.REGISTRY, "500 from r"),
        (pod(DONE, terminated(1, message='{"problem":"too many layers","repository_fault":true}')),
         FailureKind.REPOSITORY, "too many layers"),
        (pod(DONE, terminated(1, message="no json at all")), FailureKind.REGISTRY, "no json at all"),
        (pod(DONE, terminated(137, "OOMKilled")), FailureKind.ENGINE, "'push' ran out of memory"),
        (pod(fetch=terminated(1, message='{"problem":"base is gone"}')), FailureKind.REGISTRY, "base is gone"),
    ],
)  # fmt: skip
def test_why_a_pod_failed(what: dict[str, Any], kind: FailureKind, words: str) -> None:
    failure = failures.pod_failure(what, ORDER, None, ["the last line"])
    assert failure is not None
    assert failure.kind is kind, failure
    assert words in failure.message
    assert "\n" not in failure.message


def test_what_the_builds_own_steps_said_counts_when_nothing_was_done_to_the_pod() -> None:
    failed = ChildFailure(step=Step.REVISION, message="The repository has no commit abc (any more).")
    failure = failures.pod_failure(pod(terminated(1)), ORDER, failed, [])
    assert failure is not None
    assert (failure.kind, failure.message) == (FailureKind.NOT_FOUND, failed.message)


def test_a_pod_that_did_all_has_not_failed() -> None:
    good = pod(DONE, terminated(0, "Completed", f'{{"digest":"{DIGEST}"}}'), phase="Succeeded")
    assert failures.pod_failure(good, ORDER, None, []) is None
    assert failures.report(failures.ended(good, "push").message).digest == DIGEST  # type: ignore[union-attr]


def test_what_the_cluster_does_is_retried_and_what_a_build_uses_up_is_not() -> None:
    lost = failures.pod_failure(pod(reason="NodeLost"), ORDER, None, [])
    full = failures.pod_failure(pod(reason="Evicted", message=OWN_DISK), ORDER, None, [])
    assert lost is not None
    assert full is not None
    assert lost.kind.disposition is Disposition.RETRY
    assert full.kind.disposition is Disposition.STALLED


@pytest.mark.parametrize(
    ("what", "words", "stuck"),
    [
        (pod(waiting("PodInitializing"), phase="Pending"), None, False),
        (pod(waiting("ImagePullBackOff", "Back-off pulling image"), phase="Pending"), "cannot get the builder", True),
        (pod(waiting("ErrImageNeverPull"), phase="Pending"), "cannot get the builder", True),
        (pod(waiting("CreateContainerConfigError", 'secret "push" not found'), phase="Pending"), '"push"', True),
        (pod(phase="Pending", fetch=waiting(""), conditions=[
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
             "message": "0/3 nodes are available: 3 Insufficient memory."}]), "3 Insufficient memory", False),
    ],
)  # fmt: skip
def test_what_a_pod_waits_for(what: dict[str, Any], words: str | None, stuck: bool) -> None:
    wait = failures.waits_for(what)
    if words is None:
        assert wait is None
    else:
        assert wait is not None
        assert words in wait.words
        assert wait.stuck is stuck


@pytest.mark.parametrize(
    ("said", "stuck"),
    [
        ('MountVolume.SetUp failed for volume "registry" : secret "prebinder-push" not found', True),
        ('MountVolume.SetUp failed for volume "certificates" : configmap "authorities" not found', True),
        ("Failed to create pod sandbox: network is not ready", False),
    ],
)
def test_what_only_events_say_of_a_pod_that_does_not_start(said: str, stuck: bool) -> None:
    wait = failures.waits_by_events(["older", said])
    assert wait is not None
    assert said in wait.words
    assert wait.stuck is stuck
    assert failures.waits_by_events([]) is None


def test_containers_in_the_order_in_which_they_run() -> None:
    assert failures.container_names(pod()) == ["fetch", "build", "push"]
    assert failures.begun(pod(RUNNING), "build")
    assert not failures.begun(pod(waiting("PodInitializing")), "build")
    assert failures.ended(pod(RUNNING), "build") is None


def test_a_job_that_failed_without_a_pod() -> None:
    late = {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}}
    assert failures.job_failure(late).kind is FailureKind.TIMEOUT  # type: ignore[union-attr]
    assert failures.job_failure({"status": {}}) is None
    assert failures.job_failure(None) is None
    assert failures.job_done(late)
