"""Several controllers on a PostgreSQL ledger: one is active, and when it dies another goes on where it was."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chart import NAME, Installed, installed
from tests.support.images import Images
from tests.support.kube import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]

_START = """
[ -d /data/db ] || {
    initdb -D /data/db -U prebinder --auth-local=trust --auth-host=scram-sha-256 --pwfile=/password/password
    echo "host all all all scram-sha-256" >> /data/db/pg_hba.conf; }
exec postgres -D /data/db -c listen_addresses=* -c unix_socket_directories=/tmp -c fsync=off
"""


@pytest.fixture(scope="module")
def here(cluster: Cluster, namespace: str, images: Images, postgresql_image: str) -> Iterator[Installed]:
    cluster.apply(postgresql(postgresql_image, secrets.token_hex(16)), namespace)
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/postgresql", "--timeout=120s")
    password = {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "postgresql", "key": "password"}}}
    values: dict[str, Any] = {
        "controller": {"replicas": 2, "lease": True, "extraEnv": [password]},
        "config": {"ledger": {"url": "postgresql://prebinder@postgresql/postgres"}},
    }
    with installed(cluster, namespace, images, **values) as release:
        yield release


def leader(here: Installed) -> str:
    """The pod that holds the Lease."""
    return here.kubectl("get", "lease", f"{NAME}-controller", "-o", "jsonpath={.spec.holderIdentity}")


def reached(here: Installed) -> list[str]:
    """The addresses that the Service leads to."""
    said = here.kubectl("get", "endpointslice", f"{NAME}-controller", "-o", "jsonpath={.endpoints[*].addresses[*]}")
    return said.split()


def address(here: Installed, pod: str) -> str:
    return here.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")


def test_one_is_active_and_the_service_leads_to_it(here: Installed) -> None:
    pods = {p["metadata"]["name"] for p in here.pods("controller")}
    active = here.cluster.wait("an active controller", lambda: leader(here), 60)
    assert len(pods) == 2
    assert active in pods
    here.cluster.wait("its address", lambda: reached(here) == [address(here, active)], 30)
    assert here.click("course", "?build_only=true")[-1]["phase"] == "ready"


def test_when_it_is_killed_the_other_goes_on_where_it_was(here: Installed) -> None:
    before = leader(here)
    # The Lease comes first, then the ledger and what ran before; then it answers.
    here.cluster.wait("its status", lambda: "course" in here.prebinder_in(before, "status", "--json"), 60)
    here.kubectl("delete", "pod", before, "--grace-period=0", "--force", "--wait=false")
    active = here.cluster.wait("another leader", lambda: (now := leader(here)) not in ("", before) and now, 90)
    here.cluster.wait("its address", lambda: reached(here) == [address(here, active)], 60)
    # Somebody clicked before it was killed: the new one knows, from the same ledger.
    revision = here.push("course", {"README.md": "changed"})
    here.publish("course", revision)

    def newest() -> bool:
        events = here.click("course", "?build_only=true")
        return events[-1]["phase"] == "ready" and revision in str(events[-1])

    here.cluster.wait("the pushed commit", newest, 120)


def test_when_it_ends_well_the_other_takes_over_at_once(here: Installed) -> None:
    here.kubectl("rollout", "status", f"deployment/{NAME}-controller", "--timeout=60s")
    before = leader(here)
    here.kubectl("delete", "pod", before, "--wait=false")
    # Sooner than a Lease runs out.
    here.cluster.wait("another leader", lambda: leader(here) not in ("", before), 12)


def postgresql(image: str, password: str) -> list[dict[str, Any]]:
    labels = {"app": "postgresql"}
    container = {
        "name": "postgresql",
        "image": image,
        "command": ["sh", "-c", _START],
        "ports": [{"containerPort": 5432}],
        "readinessProbe": {"exec": {"command": ["pg_isready", "-h", "127.0.0.1"]}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "password", "mountPath": "/password"}],
    }
    pod = {
        "metadata": {"labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "password", "secret": {"secretName": "postgresql"}}],
        },
    }
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "postgresql"},
         "stringData": {"password": password}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "postgresql"},
         "spec": {"selector": {"matchLabels": labels}, "template": pod}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgresql"},
         "spec": {"selector": labels, "ports": [{"port": 5432}]}},
    ]  # fmt: skip
