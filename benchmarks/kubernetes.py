"""Kubernetes: how soon a push is a Job, what a busy controller costs, what the layer cache saves, what a click costs.

    python -m benchmarks.kubernetes            KUBECONFIG, or KUBE_UP, as for the tests (tests/support/kube.py)

The controller is a process of its own (kubernetes_controller.py). 500 finished builds are objects in the API server
whose status is written and not run; the 50 running ones are pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import kubernetes_clicks
from benchmarks.machine import describe_machine
from benchmarks.report import Row
from prebinder.builders.base import BuildOrder
from prebinder.builders.kubernetes.api import PODS, Api
from prebinder.builders.kubernetes.builder import KubernetesBuilder
from prebinder.builders.kubernetes.manifest import make_build_job
from prebinder.config.kubernetes import KubernetesConfig
from prebinder.config.models import Configuration, RegistryConfig
from prebinder.model.images import image_name
from prebinder.registry import OCIRegistry
from tests.support.cluster_builds import run
from tests.support.git_server import serve_git
from tests.support.images import build_images_in
from tests.support.kube import Cluster, fresh_namespace, reached
from tests.support.scripted_pod import load_scripted_image, scripted_order

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("RESULTS-kubernetes.md")
RUNNING, FINISHED, PUSHES = 50, 500, 10
REST_SECONDS = 120
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def measure() -> list[Row]:
    """Run it all; takes about ten minutes, and some more when images have to be built."""
    with reached() as cluster, tempfile.TemporaryDirectory(prefix="prebinder-bench-") as folder:
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
        image = load_scripted_image(cluster)
        with fresh_namespace(cluster, "bench") as namespace:
            rows = _busy(cluster, Path(folder), namespace, image)
        with fresh_namespace(cluster, "bench-cache") as namespace:
            rows += asyncio.run(_layer_cache(cluster, Path(folder), namespace))
        return rows + kubernetes_clicks.measure(cluster)


# A busy controller


@dataclass
class Child:
    """The controller's process."""

    process: subprocess.Popen[str]

    def ask(self, *words: object) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise AssertionError("the controller ended by itself")


@contextlib.contextmanager
def _controller(folder: Path, namespace: str, image: str, parallel: int, branches: int) -> Iterator[Child]:
    """Its process; killed in the end."""
    command = [sys.executable, "-m", "benchmarks.kubernetes_controller", str(folder), namespace, image]
    command += [str(parallel), str(branches)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        child = Child(process)
        child.answer()
        yield child
    finally:
        process.kill()
        process.wait()


def _busy(cluster: Cluster, folder: Path, namespace: str, image: str) -> list[Row]:
    pushed, busy = folder / "pushed", folder / "busy"
    pushed.mkdir()
    busy.mkdir()
    with _controller(pushed, namespace, image, PUSHES + 1, 1) as child:
        child.ask("following", 1)
        answers = [child.ask("push", f"push-{n}") for n in range(PUSHES)]
    cluster.kubectl("-n", namespace, "delete", "jobs", "--all", "--cascade=foreground")
    jobs = [a["job"] for a in answers]
    rows = [
        Row("push accepted → Job in the API server, median", f"{statistics.median(jobs) * 1000:.0f} ms", "≤ 1 s"),
        Row("the same, slowest", f"{max(jobs) * 1000:.0f} ms", "≤ 1 s"),
    ]
    asyncio.run(_finished_builds(namespace, image))
    with _controller(busy, namespace, image, RUNNING, RUNNING) as child:
        child.ask("following", RUNNING)
        time.sleep(10)
        before = child.ask("numbers")
        time.sleep(REST_SECONDS)
        after = child.ask("numbers")
    calls = (after["calls"] - before["calls"]) / (REST_SECONDS / 60)
    what = f"{FINISHED} finished and {RUNNING} running builds"
    rows += [
        Row(
            f"{what}: API calls a minute, watches included",
            f"{calls:.1f}",
            "≤ 5",
        ),
        Row(f"{what}: memory of the controller (PSS)", f"{after['pss']:.0f} MB", "≤ 150 MB"),
    ]
    with _controller(busy, namespace, image, RUNNING, RUNNING) as child:
        again = child.ask("following", RUNNING)
    rows += [
        Row(f"killed; controller started → all {RUNNING} builds followed", f"{again['since_start']:.2f} s", "≤ 2 s"),
        Row("the same, from the start of the process", f"{again['since_process']:.2f} s"),
    ]
    return rows


async def _finished_builds(namespace: str, image: str) -> None:
    """Jobs and pods as builds leave them. Nothing runs them: their Jobs are managed by nobody."""
    from kubernetes.aio import client

    api = await Api.connect(namespace)
    try:
        batch, core = client.BatchV1Api(api._client), client.CoreV1Api(api._client)
        kubernetes, registry = KubernetesConfig(image=image), RegistryConfig(prefix="registry.invalid/bench-")
        limit = asyncio.Semaphore(8)

        async def one() -> None:
            async with limit:
                manifest = make_build_job(scripted_order("true"), kubernetes, registry)
                manifest["spec"]["managedBy"] = "benchmark.prebinder.invalid/none"
                manifest["spec"].pop("ttlSecondsAfterFinished")
                made = await api.create_job(manifest)
                pod = _pod_of(manifest, made)
                await core.create_namespaced_pod(namespace, pod)
                await core.patch_namespaced_pod_status(pod["metadata"]["name"], namespace, {"status": _POD_STATUS})
                await batch.patch_namespaced_job_status(made["metadata"]["name"], namespace, {"status": _JOB_STATUS})

        await asyncio.gather(*(one() for _ in range(FINISHED)))
        pods, _ = await api.all(PODS, "")
        assert len(pods) >= FINISHED
    finally:
        await api.aclose()


_THEN = "2026-01-01T00:00:00Z"
_ENDED = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": _THEN, "finishedAt": _THEN}}


def _status(name: str) -> dict[str, Any]:
    return {"name": name, "state": _ENDED, "ready": False, "restartCount": 0, "image": "i", "imageID": "i@sha256:0"}


_POD_STATUS = {
    "phase": "Succeeded",
    "conditions": [{"type": t, "status": "True"} for t in ("Initialized", "PodScheduled", "ContainersReady")],
    "initContainerStatuses": [_status("build")],
    "containerStatuses": [_status("push")],
}
_JOB_STATUS = {
    "startTime": _THEN,
    "completionTime": _THEN,
    "succeeded": 1,
    "conditions": [
        {"type": t, "status": "True", "lastProbeTime": _THEN, "lastTransitionTime": _THEN}
        for t in ("SuccessCriteriaMet", "Complete")
    ],
}


def _pod_of(manifest: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    name, uid = made["metadata"]["name"], made["metadata"]["uid"]
    template = manifest["spec"]["template"]
    labels = {
        **template["metadata"]["labels"],
        "batch.kubernetes.io/job-name": name,
        "batch.kubernetes.io/controller-uid": uid,
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
    return {
        "metadata": {
            "name": f"{name[:57].rstrip('-')}-x",
            "labels": labels,
            "annotations": template["metadata"]["annotations"],
            "ownerReferences": [owner],
        },
        "spec": {**template["spec"], "schedulingGates": [{"name": "benchmark.prebinder.invalid/never"}]},
    }


# What the layer cache saves


async def _layer_cache(cluster: Cluster, folder: Path, namespace: str) -> list[Row]:
    """The demo's repository: built with nothing there, then a commit of content with and without the cache."""
    if cluster.registry is None:
        return [Row("the demo's build", "not measured: KUBE_REGISTRY names no registry")]
    images = build_images_in(cluster)
    content = ROOT / "controller/prebinder/onemachine/demo_content/main"
    files = {str(p.relative_to(content)): p.read_bytes() for p in content.rglob("*") if p.is_file()}
    if _BUNDLE.exists():
        cluster.kubectl("-n", namespace, "create", "configmap", "authorities", f"--from-file={_BUNDLE}")
    times: dict[str, float] = {}
    with serve_git(folder / "git", cluster.this_machine) as server:
        demo = server.create("demo", files)
        prefix = f"{cluster.registry}/prebinder-bench/{secrets.token_hex(4)}/"
        order = replace(scripted_order(""), repository=demo.repository, clone_url=demo.url, base_image=images.base)
        for what in ("cold", "cached", "uncached"):
            revision = demo.head() if what == "cold" else demo.push({"notes.md": what}, what)
            image = image_name(prefix, demo.repository, revision)
            this = replace(order, id=secrets.token_hex(6), revision=revision, image=image, **_LARGE)
            async with _builder(namespace, images.builder, prefix, layer_cache=what != "uncached") as builder:
                times[what] = await _seconds(builder, this)
    return [
        Row("the demo: Job created → image in the registry, nothing cached", f"{times['cold']:.1f} s"),
        Row("a commit that changes content only, layers from the registry", f"{times['cached']:.1f} s"),
        Row("the same without the layer cache", f"{times['uncached']:.1f} s"),
    ]


_LARGE: dict[str, Any] = {"memory_limit": 2 * 10**9, "disk_limit": 8 * 10**9, "time_limit": 900.0, "log_limit": 10**7}


@contextlib.asynccontextmanager
async def _builder(namespace: str, image: str, prefix: str, *, layer_cache: bool) -> AsyncIterator[KubernetesBuilder]:
    kubernetes = {
        "namespace": namespace,
        "image": image,
        "layer_cache": layer_cache,
        "certificates": "authorities" if _BUNDLE.exists() else None,
    }
    registry = {"prefix": prefix, "insecure": True}
    configuration = Configuration.model_validate(
        {"builder": {"kind": "kubernetes", "kubernetes": kubernetes}, "registry": registry}
    )
    store = OCIRegistry(configuration.registry)
    builder = KubernetesBuilder(lambda: configuration, store.digest)
    try:
        await builder.adopt()
        yield builder
    finally:
        await builder.aclose()
        await store.aclose()


async def _seconds(builder: KubernetesBuilder, order: BuildOrder) -> float:
    before = time.monotonic()
    await run(builder, order)
    return time.monotonic() - before


def main() -> int:
    rows = measure()
    for row in rows:
        print(f"{row.what}: {row.value}{f'   (goal: {row.goal})' if row.goal else ''}", flush=True)
    table = "\n".join(f"| {row.what} | {row.value} | {row.goal} |" for row in rows)
    head = f"# Results on Kubernetes\n\nMeasured by `make bench-kubernetes` on {datetime.now(UTC):%Y-%m-%d}.\n"
    RESULTS.write_text(f"{head}\n{describe_machine()}\n| what | measured | goal |\n|---|---|---|\n{table}\n")
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
