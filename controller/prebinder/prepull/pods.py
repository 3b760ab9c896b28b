"""The pods that pull: what one is like, and what its state says about the image. Pure.

A pod names the image and does nothing: the kubelet pulls it as for any pod, so no privilege is needed, no mount, no
daemon. The pod may do less than anybody: no token, no capability, no network (its NetworkPolicy is the chart's).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from prebinder.config.prepull import PrepullConfig
from prebinder.prepull.plan import Pull

COMPONENT = "prepull"
IMAGE = "prebinder/image"
INSTANCE = "prebinder/instance"
_NOBODY = 65534
# The kubelet's words before an image is there, and while it cannot get one (pkg/kubelet/images/types.go).
_FAILING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_BEFORE = ("ContainerCreating", "PodInitializing", "")
_MAX_REASON = 300


def pod_name(instance: str, pull: Pull) -> str:
    """One image on one node has one name: who asks twice meets the first pod. A DNS-1123 label."""
    key = "\0".join((instance, pull.image, pull.node))
    return f"prepull-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def selector(instance: str) -> str:
    """The label selector of all of an instance's pods that pull."""
    return f"app.kubernetes.io/managed-by=prebinder,app.kubernetes.io/component={COMPONENT},{INSTANCE}={instance}"


def make_pull_pod(pull: Pull, config: PrepullConfig, instance: str) -> dict[str, Any]:
    """A pod (core/v1) that has the image pulled onto the node and ends."""
    only_there = {"key": "metadata.name", "operator": "In", "values": [pull.node]}
    affinity = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [only_there]}]}
    }
    container = {
        "name": "pull",
        "image": pull.image,
        "imagePullPolicy": "IfNotPresent",
        # An image without this program is pulled all the same.
        "command": ["true"],
        "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(instance, pull),
            "labels": {
                "app.kubernetes.io/part-of": "prebinder",
                "app.kubernetes.io/component": COMPONENT,
                "app.kubernetes.io/managed-by": "prebinder",
                INSTANCE: instance,
            },
            "annotations": {IMAGE: pull.image},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": max(1, round(config.time)),
            "affinity": {"nodeAffinity": affinity},
            "tolerations": [t.model_dump(exclude_none=True) for t in config.tolerations],
            "imagePullSecrets": [{"name": name} for name in config.pull_secrets],
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _NOBODY,
                "runAsGroup": _NOBODY,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def outcome(pod: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Whether the image came, and if not why, in one line; None while that is open."""
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        if "terminated" in state or "running" in state:
            return True, ""
        waiting = state.get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason in _FAILING:
            return False, _line(waiting.get("message") or reason)
        if reason not in _BEFORE:
            return True, ""  # it cannot be started, but it is there
    if status.get("phase") == "Failed":
        return False, _line(status.get("message") or status.get("reason") or "the pod failed")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return False, _line(condition.get("message") or "no room on the node")
    return None


def _line(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _MAX_REASON else "…" + line[1 - _MAX_REASON :]
