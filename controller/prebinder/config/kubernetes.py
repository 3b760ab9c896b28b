"""The section `builder.kubernetes`: where and how builds run as Jobs. Used when `builder.kind` is `kubernetes`."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from prebinder.config.values import Bytes, Seconds, Section

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$"


class Toleration(Section):
    """As in a pod (core/v1 Toleration)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)

    key: str | None = None
    """The taint's key; every key when left out (with `operator: Exists`)."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether `value` must be the taint's."""
    value: str | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; every effect when left out."""


class KubernetesConfig(Section):
    """Builds as Jobs."""

    namespace: str | None = Field(None, pattern=_DNS_LABEL)
    """Namespace of the Jobs; the controller's own when not set."""
    instance: str = Field("prebinder", pattern=_DNS_LABEL, max_length=40)
    """Tells Prebinders apart that build in the same namespace: a label of their Jobs, and part of their names."""
    image: str = "prebinder/builder:latest"
    """The builder image (images/builder), with the same version of Prebinder as the controller."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull the builder image."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with which nodes pull the builder image."""
    push_secret: str | None = Field(None, pattern=_DNS_NAME)
    """Secret of type `kubernetes.io/dockerconfigjson` that may push to the registry. Only the container that pushes
    gets it; it runs nothing of a repository."""
    read_secret: str | None = Field(None, pattern=_DNS_NAME)
    """The same for reading, where the registry gives the base image and the layer cache only to those who log in. Only
    the container that fetches them gets it; it runs nothing of a repository."""
    certificates: str | None = Field(None, pattern=_DNS_NAME)
    """ConfigMap whose key `ca-certificates.crt` holds the certificate authorities that Git, pip and the registry are
    checked with, instead of Debian's."""
    layer_cache: bool = True
    """Keep each repository's layers in the registry (tag `buildcache` beside its images), so that a build on any node
    makes only new layers. Only builds of branches and tags write it, never those of a commit that a link names."""
    user_namespaces: bool = True
    """Run builds in a user namespace of their own (`hostUsers: false`; Kubernetes 1.33, Linux 6.3, containerd 2 or
    CRI-O). With `false`, for clusters that cannot, a build is root in its container with the capabilities of any
    container there, no seccomp filter and slower storage: less apart from the node, but never privileged."""
    cpu_request: float = Field(0.5, ge=0)
    """CPU cores that the scheduler sets aside for a build."""
    cpu_limit: float = Field(0, ge=0)
    """Most CPU cores of a build; 0 is no limit."""
    memory_request: Bytes = 512 * 10**6
    """Memory that the scheduler sets aside for a build; the limit is `limits.memory`."""
    processes: int = Field(4096, ge=64)
    """Most processes of a build."""
    priority_class: str | None = Field(None, pattern=_DNS_NAME)
    """PriorityClass of build pods."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that build."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that builds may run on nevertheless."""
    same_node: bool = True
    """Prefer the node of the repository's last build: what it read and pulled is there already."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the Jobs, for example `kueue.x-k8s.io/queue-name` where Kueue admits Jobs."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of Jobs and pods."""
    pending_limit: Seconds = Field(1800.0, gt=0)
    """Longest time that a Job may wait for a node, a quota or its image before the build is tried again."""
    keep: Seconds = 3600.0
    """A finished Job is removed by the cluster after this time (`ttlSecondsAfterFinished`)."""
