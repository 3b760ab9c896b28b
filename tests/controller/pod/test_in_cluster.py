"""Real builds in real pods: repo2docker and buildah without privileges, pushed by a container of its own.

What the controller's side does with pods that fail, vanish or lie is tested in tests/controller/builders/kubernetes;
here it is what a repository can do in its build, and what it cannot.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from prebinder.builders.base import BuildOrder
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.config.models import Configuration
from prebinder.model.failure import FailureKind
from prebinder.model.images import image_name
from prebinder.registry import OCIRegistry
from tests.support.build_orders import an_order
from tests.support.cluster_builds import failure, run, text
from tests.support.git_server import GitRepository, GitServer, serve_git
from tests.support.images import BuildImages, build_images
from tests.support.kube import Cluster, cluster, namespace
from tests.support.registry import HTPASSWD, OCI_MANIFEST, Registry, running_registry

__all__ = ["build_images", "cluster", "namespace"]

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PASSWORD = "secret"  # of HTPASSWD
AUTH = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()


@dataclass
class Farm:
    """A namespace with everything that real builds need."""

    cluster: Cluster
    namespace: str
    images: BuildImages
    git: GitServer

    @asynccontextmanager
    async def builder(self, prefix: str = "", **kubernetes: Any) -> AsyncIterator[tuple[KubernetesBuilder, str]]:
        """A builder, and the prefix of the images that it makes."""
        prefix = prefix or f"{self.cluster.registry}/prebinder-tests/{secrets.token_hex(4)}/"
        settings = {
            "namespace": self.namespace,
            "image": self.images.builder,
            "cpu_request": 0.3,
            "memory_request": "32MB",
            "certificates": "authorities" if BUNDLE.exists() else None,
            **kubernetes,
        }
        configuration = Configuration.model_validate(
            {
                "builder": {"kind": "kubernetes", "kubernetes": settings},
                "registry": {"prefix": prefix, "insecure": True},
            }
        )
        store = OCIRegistry(configuration.registry)
        builder = KubernetesBuilder(lambda: configuration, store.digest)
        try:
            await builder.adopt()
            yield builder, prefix
        finally:
            await builder.aclose()
            await store.aclose()

    def order(self, prefix: str, course: GitRepository, base: str = "", **changes: Any) -> BuildOrder:
        revision = course.head()
        return an_order(
            id=secrets.token_hex(6),
            repository=course.repository,
            clone_url=course.url,
            revision=revision,
            image=image_name(prefix, course.repository, revision),
            base_image=base or self.images.base,
            **changes,
        )

    def dockerfile(self, *lines: str, base: str = "") -> GitRepository:
        """A repository that is built by those lines on our base image, or on another."""
        content = "\n".join([f"FROM {base or self.images.base}", "USER root", *lines, ""])
        return self.git.create(f"r{secrets.token_hex(4)}", {"Dockerfile": content})


@pytest.fixture(scope="module")
def farm(
    cluster: Cluster, namespace: str, build_images: BuildImages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    if BUNDLE.exists():
        cluster.kubectl("-n", namespace, "create", "configmap", "authorities", f"--from-file={BUNDLE}")
    with serve_git(tmp_path_factory.mktemp("git"), cluster.this_machine) as git:
        yield Farm(cluster, namespace, build_images, git)


@pytest.fixture(autouse=True)
def reached(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))


def manifest(order: BuildOrder, headers: dict[str, str] | None = None) -> dict[str, Any]:
    host, _, path = order.image.name.partition("/")
    answer = httpx.get(
        f"http://{host}/v2/{path}/manifests/{order.image.tag}", headers={"Accept": OCI_MANIFEST, **(headers or {})}
    )
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


async def test_a_repository_becomes_an_image_and_the_next_commit_makes_only_what_is_new(farm: Farm) -> None:
    course = farm.git.create("course", {"requirements.txt": "cowsay==6.1\n", "index.ipynb": "{}"})
    async with farm.builder() as (builder, prefix):
        first = farm.order(prefix, course)
        said = text(await run(builder, first))
        assert "Successfully installed cowsay" in said
        course.push({"index.ipynb": '{"cells": []}'}, "Content")
        second = farm.order(prefix, course)
        said = text(await run(builder, second))
        assert "Fetched the layers of an earlier build" in said
        assert "Successfully installed" not in said
        assert "Cloning" in said
    one, two = manifest(first)["layers"], manifest(second)["layers"]
    assert one != two
    assert one[:-1] == two[:-1], "only the layer of the content is new"


async def test_a_dockerfile_is_built_and_its_failing_step_is_the_repositorys_own(farm: Farm) -> None:
    async with farm.builder() as (builder, prefix):
        good = farm.order(prefix, farm.dockerfile("RUN id -u > /who && test $(cat /who) = 0"))
        await run(builder, good)
        bad = await failure(builder, farm.order(prefix, farm.dockerfile("RUN echo it cannot work; false")))
        assert bad.kind is FailureKind.REPOSITORY
        assert "it cannot work" in str(bad)


async def test_a_repository_that_is_not_there(farm: Farm) -> None:
    course = farm.git.create("gone")
    async with farm.builder() as (builder, prefix):
        order = farm.order(prefix, course)
        (farm.git.folder / "gone.git").rename(farm.git.folder / "moved.git")
        assert (await failure(builder, order)).kind is FailureKind.NOT_FOUND


async def test_a_build_is_root_in_its_own_user_namespace_and_nowhere_else(farm: Farm) -> None:
    course = farm.dockerfile(
        "RUN cat /proc/self/uid_map > /map && ! grep -qE '^ *0 +0 ' /map",
        "RUN ! mount -t tmpfs none /mnt 2>/dev/null || ! mknod /dev/sda b 8 0 2>/dev/null",
        "RUN ! test -e /var/run/secrets/kubernetes.io && ! test -S /var/run/docker.sock",
        "RUN ! dmesg >/dev/null 2>&1 && ! echo 1 > /proc/sys/kernel/sysrq",
    )
    async with farm.builder() as (builder, prefix):
        await run(builder, farm.order(prefix, course))


@pytest.fixture(scope="module")
def closed(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a password, which the Secrets `may-push` and `may-read` hold; our base image is in it."""
    cluster, namespace = farm.cluster, farm.namespace
    folder = tmp_path_factory.mktemp("closed")
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    with running_registry(folder / "registry", auth, {"Authorization": f"Basic {AUTH}"}, cluster.this_machine) as it:
        (folder / "config.json").write_text(json.dumps({"auths": {it.host: {"auth": AUTH}}}))
        for name in ("may-push", "may-read"):
            cluster.kubectl(
                *("-n", namespace, "create", "secret", "generic", name, "--type=kubernetes.io/dockerconfigjson"),
                f"--from-file=.dockerconfigjson={folder / 'config.json'}",
            )
        cluster.run(
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"--dest-creds=ada:{PASSWORD}", f"docker://{farm.images.base}", f"docker://{base_in(it)}"),
        )
        yield it


def base_in(registry: Registry) -> str:
    return f"{registry.host}/base:1"


async def test_a_build_step_finds_the_registrys_credentials_nowhere_and_its_image_is_pushed_with_them(
    farm: Farm, closed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = farm.dockerfile(
        # Environments, mounts and files of every process that a step can see, this step's own text apart.
        f"RUN ! env | grep -q {AUTH[:9]} && ! test -e /run/registry",
        "RUN for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; ls $p/root/run/registry; done > /seen 2>/dev/null;"
        " ! grep -qE 'auths|config.json' /seen",
        f"RUN ! python3 -c \"import urllib.request as u; u.urlopen('http://{closed.host}/v2/_catalog')\" 2>/said"
        " && grep -q 401 /said",
        base=base_in(closed),
    )
    async with farm.builder(f"{closed.host}/b-", push_secret="may-push", read_secret="may-read") as (builder, prefix):
        order = farm.order(prefix, course, base_in(closed))
        monkeypatch.setattr(builder, "_digest_of", lambda image: _digest(order, closed))
        said = text(await run(builder, order))
    assert manifest(order, dict(closed.headers))["layers"]
    assert AUTH not in said
    assert PASSWORD not in said


async def _digest(order: BuildOrder, registry: Registry) -> str:
    host, _, path = order.image.name.partition("/")
    async with httpx.AsyncClient(headers={"Accept": OCI_MANIFEST, **registry.headers}) as client:
        answer = await client.head(f"http://{host}/v2/{path}/manifests/{order.image.tag}")
    return str(answer.headers["Docker-Content-Digest"])


async def test_without_credentials_the_registrys_refusal_is_told(farm: Farm, closed: Registry) -> None:
    async with farm.builder(f"{closed.host}/b-", layer_cache=False) as (builder, prefix):
        course = farm.dockerfile("RUN true", base=base_in(closed))
        refused = await failure(builder, farm.order(prefix, course, base_in(closed)))
    assert refused.kind is FailureKind.REGISTRY
    assert "refuses us" in str(refused)


FORKS = "fork() { fork | fork & }; fork; wait; sleep 3; exit 3"
HUNGRY = 'python3 -c "a = [bytearray(10**7) for _ in range(200)]"'


@pytest.mark.parametrize(
    ("step", "limits", "kind"),
    [
        ("RUN sleep 600", {"time_limit": 15.0}, FailureKind.TIMEOUT),
        ("RUN yes | head -c 100000000", {"log_limit": 200_000}, FailureKind.LOG_FLOOD),
        (f"RUN {HUNGRY}", {"memory_limit": 600 * 10**6}, FailureKind.MEMORY),
        (f"RUN {FORKS}", {"time_limit": 120.0}, FailureKind.REPOSITORY),
        ("RUN head -c 4000000000 /dev/zero > /full; sleep 60", {"disk_limit": 3 * 10**9}, FailureKind.DISK),
    ],
    ids=["time", "log", "memory", "forks", "disk"],
)
async def test_a_build_without_end_ends_at_its_limit(
    farm: Farm, step: str, limits: dict[str, Any], kind: FailureKind
) -> None:
    async with farm.builder(processes=200) as (builder, prefix):
        failed = await failure(builder, farm.order(prefix, farm.dockerfile(step), **limits))
    assert failed.kind is kind, str(failed)


async def test_on_a_cluster_without_user_namespaces_a_build_works_without_being_privileged(farm: Farm) -> None:
    async with farm.builder(user_namespaces=False) as (builder, prefix):
        order = farm.order(prefix, farm.dockerfile("RUN echo works > /here"))
        await run(builder, order)
    assert manifest(order)["layers"]
