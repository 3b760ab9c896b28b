"""The Job of a build, read as a table: what the pod may do, what bounds it, and who sees which secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.builders.kubernetes.manifest import make_build_job
from prebinder.builders.kubernetes.wire import ORDER, PodOrder
from prebinder.config.kubernetes import KubernetesConfig
from prebinder.config.models import RegistryConfig
from tests.support.build_orders import an_order

REGISTRY = RegistryConfig(prefix="registry.example.org/binder/")
SECRETS = {"push_secret": "may-push", "read_secret": "may-read"}


def job(*, order: Any = None, prefer_node: str | None = None, **settings: Any) -> dict[str, Any]:
    config = KubernetesConfig.model_validate(settings)
    return make_build_job(order or an_order(), config, REGISTRY, prefer_node=prefer_node)


def pod(**settings: Any) -> dict[str, Any]:
    spec: dict[str, Any] = job(**settings)["spec"]["template"]["spec"]
    return spec


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in (*spec["initContainers"], *spec["containers"])}


def told(container: dict[str, Any]) -> PodOrder:
    return PodOrder.model_validate_json(next(e["value"] for e in container["env"] if e["name"] == ORDER))


def keys(value: Any) -> Iterator[str]:
    """Every key anywhere in a manifest."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


configurations = st.fixed_dictionaries(
    {},
    optional={
        "push_secret": st.just("may-push"),
        "read_secret": st.just("may-read"),
        "certificates": st.just("authorities"),
        "layer_cache": st.booleans(),
        "user_namespaces": st.booleans(),
        "cpu_limit": st.sampled_from([0, 0.2, 4]),
        "priority_class": st.just("builds"),
        "node_selector": st.just({"pool": "builds"}),
        "labels": st.just({"kueue.x-k8s.io/queue-name": "builds"}),
        "annotations": st.just({"team": "teaching"}),
    },
)


@given(configurations)
def test_no_configuration_gives_a_build_privileges_on_its_node_or_in_the_cluster(settings: dict[str, Any]) -> None:
    spec = pod(**settings)
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert not {"hostPath", "hostNetwork", "hostPID", "hostIPC", "volumeDevices", "hostPort"} & set(keys(spec))
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(spec).values():
        security = container["securityContext"]
        assert security.get("privileged", False) is False
        assert security["capabilities"]["drop"] == ["ALL"]
        if "SYS_ADMIN" in security["capabilities"].get("add", ()):
            assert spec["hostUsers"] is False, "only in a user namespace of its own"
    assert job(**settings)["spec"]["backoffLimit"] == 0
    assert spec["restartPolicy"] == "Never"


@given(configurations)
def test_no_secret_is_where_the_repositorys_code_runs(settings: dict[str, Any]) -> None:
    spec = pod(**settings)
    secret = {v["name"]: v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v}
    seen = {
        name: {secret[m["name"]] for m in container["volumeMounts"] if m["name"] in secret}
        for name, container in containers(spec).items()
    }
    assert seen["build"] == set()
    assert seen["push"] == ({"may-push"} if "push_secret" in settings else set())
    assert seen.get("fetch", set()) <= {"may-read"}
    assert "envFrom" not in set(keys(spec))
    assert "valueFrom" not in set(keys(spec))


def test_only_the_container_that_builds_may_do_more_than_an_ordinary_user() -> None:
    for name, container in containers(pod(**SECRETS)).items():
        security = container["securityContext"]
        if name == "build":
            assert security["runAsUser"] == 0
        else:
            assert security["runAsNonRoot"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert "add" not in security["capabilities"]


def test_what_push_reads_it_cannot_change_and_what_was_fetched_the_build_cannot() -> None:
    all_of_them = containers(pod())
    mounts = {name: {m["name"]: m for m in c["volumeMounts"]} for name, c in all_of_them.items()}
    assert mounts["push"]["image"]["readOnly"] is True
    assert mounts["build"]["fetched"]["readOnly"] is True
    assert "storage" not in mounts["push"], "buildah's storage is the build's to forge"


def test_without_user_namespaces_nothing_is_added_silently() -> None:
    spec = pod(user_namespaces=False)
    build = containers(spec)["build"]
    assert spec["hostUsers"] is True
    assert "SYS_ADMIN" not in build["securityContext"]["capabilities"]["add"]
    assert told(build).storage == "vfs"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, "loosened for the build alone"


def test_time_memory_disk_and_what_is_set_aside_are_bounded() -> None:
    order = an_order(time_limit=100, memory_limit=10**9, disk_limit=3 * 10**9)
    made = job(order=order, pending_limit=50, keep=60, memory_request="4G", cpu_limit=0.2)
    spec = made["spec"]["template"]["spec"]
    assert made["spec"]["ttlSecondsAfterFinished"] == 60
    assert made["spec"]["activeDeadlineSeconds"] > spec["activeDeadlineSeconds"] > 100
    build = containers(spec)["build"]["resources"]
    assert build["limits"] == {"memory": "1000000000", "ephemeral-storage": "3000000000", "cpu": "200m"}
    assert build["requests"]["memory"] == "1000000000", "never more than the limit"
    assert build["requests"]["cpu"] == "200m"
    assert all(v["emptyDir"]["sizeLimit"] == "3000000000" for v in spec["volumes"])


def test_what_is_configured_arrives() -> None:
    taint = {"key": "builds", "operator": "Exists", "effect": "NoSchedule"}
    made = job(
        priority_class="low",
        node_selector={"pool": "builds"},
        tolerations=[taint],
        labels={"kueue.x-k8s.io/queue-name": "builds"},
        annotations={"team": "teaching"},
        image_pull_secrets=["pull"],
        image="registry.example.org/builder:1",
        prefer_node="node-7",
    )
    spec = made["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "low"
    assert spec["nodeSelector"] == {"pool": "builds"}
    assert spec["tolerations"] == [taint]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert {c["image"] for c in containers(spec).values()} == {"registry.example.org/builder:1"}
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "builds"
    assert made["metadata"]["annotations"]["team"] == "teaching"
    assert "node-7" in json.dumps(spec["affinity"])
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in set(keys(spec)), "preferred, no more"
    assert "affinity" not in job(prefer_node="node-7", same_node=False)["spec"]["template"]["spec"]


def test_our_own_labels_cannot_be_configured_away() -> None:
    made = job(labels={"prebinder/instance": "another"}, annotations={"prebinder/ref": "another"})
    assert made["metadata"]["labels"]["prebinder/instance"] == "prebinder"
    assert made["metadata"]["annotations"]["prebinder/ref"] == "main"


@pytest.mark.parametrize("trusted", [True, False])
def test_only_builds_of_branches_and_tags_write_the_layer_cache(trusted: bool) -> None:
    order = told(containers(pod(order=an_order(trusted=trusted)))["push"])
    assert (order.read_cache, order.write_cache) == (True, trusted)
    off = told(containers(pod(order=an_order(trusted=trusted), layer_cache=False))["push"])
    assert (off.read_cache, off.write_cache) == (False, False)


@pytest.mark.parametrize(
    ("base", "cache", "fetches"),
    [
        (None, False, False),
        (None, True, True),
        ("docker.io/library/python:3.12", False, False),
        ("registry.example.org/base:1", False, True),
        ("registry.example.org.evil/base:1", False, False),
    ],
)
def test_there_is_a_container_that_fetches_when_our_registry_has_something(
    base: str | None, cache: bool, fetches: bool
) -> None:
    order = an_order(base_image=base)
    assert ("fetch" in containers(pod(order=order, layer_cache=cache))) is fetches
