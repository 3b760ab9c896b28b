"""The chart's small registry: a push becomes an image in it, and the image outlives the registry's pod.

That nodes pull from it is up to their container runtime, which has to be told that it speaks plain HTTP; a test cannot.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from prebinder.model.images import image_name
from prebinder.model.spec import git_url
from tests.support.chart import NAME, Installed, installed
from tests.support.images import BuildImages, Images
from tests.support.kube import Cluster

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

_DIGEST = """
import sys, urllib.request
kind = "application/vnd.oci.image.manifest.v1+json"
asked = urllib.request.Request(sys.argv[1], method="HEAD", headers={"Accept": kind})
try:
    print(urllib.request.urlopen(asked, timeout=10).headers["Docker-Content-Digest"])
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> str:
    """Where nodes and pods reach the registry: a node's address, and a port that is hopefully free."""
    node = cluster.get("nodes", "default")[0]
    address = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    return f"{address}:{random.randint(31000, 32700)}"


@pytest.fixture(scope="module")
def here(
    cluster: Cluster, namespace: str, images: Images, build_images: BuildImages, registry_image: str, host: str
) -> Iterator[Installed]:
    repository, _, digest = build_images.builder.partition("@")
    to_git = {"to": [{"podSelector": {"matchLabels": {"app": "git"}}}], "ports": [{"port": 9418}]}
    values: dict[str, Any] = {
        "builds": {"image": {"repository": repository, "digest": digest}},
        "networkPolicy": {"builds": {"extraEgress": [to_git]}},
        "registry": {
            "enabled": True,
            "host": host,
            "nodePort": int(host.rpartition(":")[2]),
            "image": registry_image,
            "command": ["docker-registry"],
            "size": "1Gi",
        },
        "config": {
            "registry": {"prefix": f"{host}/binder/"},
            "builder": {"build_pack": "pip", "kubernetes": {"cpu_request": 0.1, "memory_request": "64MB"}},
        },
    }
    with installed(cluster, namespace, images, **values) as release:
        yield release
    _free_volumes(cluster, namespace)


def _free_volumes(cluster: Cluster, namespace: str) -> None:
    """Volumes that nobody recycles are free for the next claim."""
    for volume in cluster.get("persistentvolumes", "default"):
        claim = volume["spec"].get("claimRef") or {}
        if claim.get("namespace") == namespace and volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain":
            name = volume["metadata"]["name"]
            cluster.kubectl("patch", "persistentvolume", name, "--type=merge", "-p", json.dumps({"spec": _FREE}))


_FREE = {"claimRef": None}


def test_a_push_becomes_an_image_in_it_which_outlives_its_pod(here: Installed, host: str) -> None:
    revision = here.push("course", {"requirements.txt": "", "answer.txt": "42"})
    image = image_name(f"{host}/binder/", git_url(here.git_url("course")), revision)
    url = f"http://{host}/v2/{image.name.partition('/')[2]}/manifests/{image.tag}"

    def digest() -> str | None:
        said = here.kubectl("exec", f"deployment/{NAME}-controller", "--", "python3", "-c", _DIGEST, url).strip()
        return said if said.startswith("sha256:") else None

    pushed = here.cluster.wait("the image in the registry", digest, 400)
    inside = url.replace(host, f"{NAME}-registry:5000")
    assert not here.python(_DIGEST, inside).startswith("sha256:"), "it is for Prebinder's own pods and the nodes"
    pod = here.pods("registry")[0]["metadata"]["name"]
    here.kubectl("delete", "pod", pod, "--grace-period=1")
    here.kubectl("rollout", "status", f"deployment/{NAME}-registry", "--timeout=90s")
    assert here.cluster.wait("the registry", digest, 120) == pushed
    events = here.click("course", "?build_only=true")
    assert events[-1]["phase"] == "ready", events
    assert events[-1]["imageName"] == str(image)
