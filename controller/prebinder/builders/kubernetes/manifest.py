"""The Job of one build. Pure: an order and settings in, a manifest out.

Guarantees, read from the manifest by tests:
- The pod has no service account token, no host path, no host network, no privilege beyond its own user namespace, and
  a seccomp profile.
- Credentials are mounted where no code of a repository runs, and nowhere else.
- A Job never makes a second pod (`backoffLimit: 0`): retries are the queue's, by kind of failure.
- Time, memory, disk and processes are bounded.
"""

from __future__ import annotations

from typing import Any

from prebinder.builders.base import BuildOrder
from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.names import job_name, labels, notes
from prebinder.builders.kubernetes.wire import PodOrder, Role
from prebinder.config.kubernetes import KubernetesConfig
from prebinder.config.models import RegistryConfig

Manifest = dict[str, Any]

# What `buildah` needs in its own user namespace to unpack layers, mount overlays and run steps in a chroot.
_BUILD_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)
_NOBODY = 65532
_PUSH_MEMORY = 512 * 2**20
# The push and the unpacking of what is fetched come on top of the build's own time.
_BEYOND = 600


def make_build_job(
    order: BuildOrder,
    kubernetes: KubernetesConfig,
    registry: RegistryConfig,
    *,
    all_providers: bool = False,
    prefer_node: str | None = None,
) -> Manifest:
    """The Job that makes the image of `order`. `prefer_node` is where this repository was built last."""
    pod_order = order_for_pod(order, kubernetes, registry, all_providers=all_providers)
    ours = labels(kubernetes.instance, order)
    told = {**kubernetes.annotations, **notes(order)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(kubernetes.instance, order.image),
            "labels": {**kubernetes.labels, **ours},
            "annotations": told,
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": int(kubernetes.keep),
            "activeDeadlineSeconds": int(kubernetes.pending_limit + order.time_limit + _BEYOND),
            "template": {
                "metadata": {"labels": {**kubernetes.labels, **ours}, "annotations": told},
                "spec": _pod(order, pod_order, kubernetes, prefer_node),
            },
        },
    }


def order_for_pod(
    order: BuildOrder, kubernetes: KubernetesConfig, registry: RegistryConfig, *, all_providers: bool
) -> PodOrder:
    """What the pod is told.

    The layer cache is written by builds of branches and tags only: what else a link names may be anybody's (hosts show
    the commits and requests of forks under the repository's own name), and must not put layers under later builds.
    """
    return PodOrder(
        clone_url=order.clone_url,
        revision=order.revision,
        image_name=order.image.name,
        image_tag=order.image.tag,
        build_pack=order.build_pack,
        base_image=order.base_image,
        all_providers=all_providers,
        memory_limit=order.memory_limit,
        time_limit=order.time_limit,
        log_limit=order.log_limit,
        disk_limit=order.disk_limit,
        processes=kubernetes.processes,
        insecure=registry.insecure,
        registry_timeout=registry.timeout,
        storage="overlay" if kubernetes.user_namespaces else "vfs",
        read_cache=kubernetes.layer_cache,
        write_cache=kubernetes.layer_cache and order.trusted,
    )


def _pod(order: BuildOrder, pod_order: PodOrder, kubernetes: KubernetesConfig, prefer_node: str | None) -> Manifest:
    said = {"name": wire.ORDER, "value": pod_order.model_dump_json()}
    fetches = pod_order.read_cache or pod_order.our_base is not None
    pod: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": int(order.time_limit + _BEYOND),
        "terminationGracePeriodSeconds": 3,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostUsers": not kubernetes.user_namespaces,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [
            *([_fetch(said, kubernetes)] if fetches else []),
            _build(said, order, kubernetes),
        ],
        "containers": [_push(said, kubernetes)],
        "volumes": _volumes(order, kubernetes),
    }
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    if kubernetes.priority_class:
        pod["priorityClassName"] = kubernetes.priority_class
    if kubernetes.node_selector:
        pod["nodeSelector"] = dict(kubernetes.node_selector)
    if kubernetes.tolerations:
        pod["tolerations"] = [t.model_dump(exclude_none=True) for t in kubernetes.tolerations]
    if prefer_node and kubernetes.same_node:
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [prefer_node]}
        pod["affinity"] = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 50, "preference": {"matchExpressions": [here]}}
                ]
            }
        }
    return pod


def _container(role: Role, said: Manifest, kubernetes: KubernetesConfig, mounts: list[Manifest]) -> Manifest:
    environment = [said]
    if kubernetes.certificates:
        bundle = f"{wire.CERTIFICATES}/ca-certificates.crt"
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO", "CURL_CA_BUNDLE")
        environment += [{"name": name, "value": bundle} for name in names]
        mounts = [*mounts, {"name": "certificates", "mountPath": wire.CERTIFICATES, "readOnly": True}]
    return {
        "name": role.value,
        "image": kubernetes.image,
        "imagePullPolicy": kubernetes.image_pull_policy,
        "command": ["python3", "-m", "prebinder.pod", role.value],
        "env": environment,
        "volumeMounts": mounts,
    }


def _credentials(secret: str | None, volume: str) -> list[Manifest]:
    folder = wire.CREDENTIALS.rpartition("/")[0]
    return [{"name": volume, "mountPath": folder, "readOnly": True}] if secret else []


def _fetch(said: Manifest, kubernetes: KubernetesConfig) -> Manifest:
    mounts: list[Manifest] = [
        {"name": "fetched", "mountPath": wire.FETCHED},
        *_credentials(kubernetes.read_secret, "read-secret"),
    ]
    return {
        **_container(Role.FETCH, said, kubernetes, mounts),
        "securityContext": _harmless(),
        "resources": {
            "requests": {"cpu": _cores(kubernetes.cpu_request), "memory": "64Mi"},
            "limits": {"memory": str(_PUSH_MEMORY)},
        },
    }


def _build(said: Manifest, order: BuildOrder, kubernetes: KubernetesConfig) -> Manifest:
    mounts: list[Manifest] = [
        {"name": "storage", "mountPath": wire.STORAGE},
        {"name": "work", "mountPath": wire.WORK},
        {"name": "image", "mountPath": wire.IMAGE},
        {"name": "fetched", "mountPath": wire.FETCHED, "readOnly": True},
    ]
    requests = {
        "cpu": _cores(kubernetes.cpu_request),
        "memory": str(min(kubernetes.memory_request, order.memory_limit)),
    }
    limits = {"memory": str(order.memory_limit), "ephemeral-storage": str(order.disk_limit)}
    if kubernetes.cpu_limit:
        limits["cpu"] = _cores(kubernetes.cpu_limit)
        requests["cpu"] = _cores(min(kubernetes.cpu_request, kubernetes.cpu_limit))
    # A request equal to the limit is what the API server fills in for the disk otherwise.
    requests["ephemeral-storage"] = str(min(order.disk_limit, 2**30))
    container = _container(Role.BUILD, said, kubernetes, mounts)
    security: Manifest = {
        "runAsUser": 0,
        "privileged": False,
        "capabilities": {"drop": ["ALL"], "add": [*_BUILD_CAPABILITIES]},
    }
    if kubernetes.user_namespaces:
        # Holds for the pod's own namespace only. Mounting overlays needs it.
        security["capabilities"]["add"].append("SYS_ADMIN")
    else:
        # Steps run in a chroot with mounts of their own, which the default filter refuses without SYS_ADMIN.
        security["seccompProfile"] = {"type": "Unconfined"}
    return {
        **container,
        "securityContext": security,
        "resources": {"requests": requests, "limits": limits},
    }


def _push(said: Manifest, kubernetes: KubernetesConfig) -> Manifest:
    mounts: list[Manifest] = [
        {"name": "image", "mountPath": wire.IMAGE, "readOnly": True},
        *_credentials(kubernetes.push_secret, "push-secret"),
    ]
    return {
        **_container(Role.PUSH, said, kubernetes, mounts),
        "securityContext": _harmless(),
        "resources": {
            "requests": {"cpu": _cores(min(0.05, kubernetes.cpu_request)), "memory": "64Mi"},
            "limits": {"memory": str(_PUSH_MEMORY)},
        },
    }


def _harmless() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": _NOBODY,
        "runAsGroup": _NOBODY,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _volumes(order: BuildOrder, kubernetes: KubernetesConfig) -> list[Manifest]:
    names = ("storage", "work", "image", "fetched")
    volumes: list[Manifest] = [{"name": n, "emptyDir": {"sizeLimit": str(order.disk_limit)}} for n in names]
    for name, secret in (("read-secret", kubernetes.read_secret), ("push-secret", kubernetes.push_secret)):
        if secret:
            items = [{"key": ".dockerconfigjson", "path": wire.CREDENTIALS.rpartition("/")[2]}]
            volumes.append({"name": name, "secret": {"secretName": secret, "items": items, "defaultMode": 0o444}})
    if kubernetes.certificates:
        items = [{"key": "ca-certificates.crt", "path": "ca-certificates.crt"}]
        volumes.append({"name": "certificates", "configMap": {"name": kubernetes.certificates, "items": items}})
    return volumes


def _cores(number: float) -> str:
    return f"{round(number * 1000)}m"
