"""The outcome on a real cluster: a pushed commit becomes a Job, an image, waits on the node, and opens at a click."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chart import NAME, Installed, installed, server_name
from tests.support.images import BuildImages, Images
from tests.support.kube import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def here(cluster: Cluster, namespace: str, images: Images, build_images: BuildImages) -> Iterator[Installed]:
    repository, _, digest = build_images.builder.partition("@")
    to_git = {"to": [{"podSelector": {"matchLabels": {"app": "git"}}}], "ports": [{"port": 9418}]}
    values: dict[str, Any] = {
        "builds": {"image": {"repository": repository, "digest": digest}},
        "networkPolicy": {"builds": {"extraEgress": [to_git, _to_registry(images.registry)]}},
        "config": {
            "builder": {
                "build_pack": "pip",
                "base_image": build_images.base,
                "kubernetes": {"cpu_request": 0.1, "memory_request": "64MB"},
            },
            "prepull": {"enabled": True, "every": 5},
        },
    }
    with installed(cluster, namespace, images, **values) as release:
        yield release


def _to_registry(registry: str) -> dict[str, Any]:
    host, _, port = registry.rpartition(":")
    rule: dict[str, Any] = {"ports": [{"port": int(port)}]}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return rule
    return {**rule, "to": [{"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}]}


def test_a_pushed_commit_is_built_waits_on_the_node_and_opens_at_a_click(here: Installed) -> None:
    revision = here.push("course", {"requirements.txt": "", "answer.txt": "42"})
    jobs = here.cluster.wait("a Job for the commit", lambda: here.cluster.get("jobs", here.namespace), 60)
    assert jobs[0]["spec"]["template"]["spec"]["hostUsers"] is False

    def ended() -> dict[str, Any] | None:
        for job in here.cluster.get("jobs", here.namespace):
            if {"Complete", "Failed"} & {c["type"] for c in job.get("status", {}).get("conditions", ())}:
                return job
        return None

    job = here.cluster.wait("the end of the build", ended, 400)
    assert job["status"].get("succeeded") == 1, here.build_log(job["metadata"]["labels"]["prebinder/build"])

    def waits() -> bool:
        prepull = here.controller_status().get("prepull") or {}
        return (
            bool(prepull.get("nodes"))
            and prepull["wanted"] >= 1
            and all(n["held"] == prepull["wanted"] for n in prepull["nodes"])
        )

    here.cluster.wait("the image on the node", waits, 120)
    events = here.click("course")
    assert events[-1]["phase"] == "ready", events
    assert events[-1]["binder_persistent_request"].endswith(revision)
    name = server_name(events[-1]["url"])
    pod = next(p for p in here.servers() if p["metadata"]["annotations"]["hub.jupyter.org/username"] == name)
    assert here.kubectl("exec", pod["metadata"]["name"], "--", "cat", "answer.txt").strip() == "42"
    command = ("get", "events", "--field-selector", f"involvedObject.name={pod['metadata']['name']}")
    here.cluster.wait("the event", lambda: "already present on machine" in here.kubectl(*command), 30)


def test_everything_is_healthy(here: Installed) -> None:
    here.cluster.wait("all is well", lambda: here.controller_status().get("health", {}).get("ok"), 60)
    here.kubectl("rollout", "status", f"deployment/{NAME}-controller", "--timeout=30s")
