"""What a click costs on a cluster: by the chart, with a real JupyterHub, KubeSpawner and an image that is on the node.

Clicks come one after the other from a pod, through the Service, each to a server of its own, as browsers' do. Our own
part is what is left of a click when the Hub's time, as the endpoint's metrics tell it, is taken away.
"""

from __future__ import annotations

import json
import statistics

from benchmarks.report import Row, percentile
from tests.support.chart import NAME, installed
from tests.support.images import images_in
from tests.support.kube import Cluster, fresh_namespace

CLICKS = 20
_SCRIPT = """
import json, re, sys, time, urllib.request
base, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

def hub():
    with urllib.request.urlopen(base + "/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return sum(float(v) for v in re.findall(r"^binderhub_launch_time_seconds_sum(?:{.*})? (\\S+)$", text, re.M))

def events(query=""):
    with urllib.request.urlopen(base + path + query, timeout=120) as stream:
        for line in stream:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if event["phase"] == "failed":
                    sys.exit(event["message"])
                if event["phase"] == "ready":
                    return event

def answers(url):
    while True:
        try:
            return urllib.request.urlopen(url, timeout=10).read()
        except OSError:
            time.sleep(0.01)

found = []
for _ in range(count + 1):
    spent, began = hub(), time.perf_counter()
    event = events()
    ready = time.perf_counter()
    answers(event["url"] + "api/status?token=" + event["token"])
    found.append({"answers": time.perf_counter() - began, "ours": ready - began - (hub() - spent)})
print(json.dumps(found[1:]))
"""


def measure(cluster: Cluster) -> list[Row]:
    """About two minutes."""
    if cluster.registry is None:
        return [Row("clicks", "not measured: KUBE_REGISTRY names no registry")]
    with (
        fresh_namespace(cluster, "bench-clicks") as namespace,
        installed(cluster, namespace, images_in(cluster), endpoint={"replicas": 1}) as here,
    ):
        path = f"/build/{here.spec('course')}"
        found = json.loads(here.python(_SCRIPT, f"http://{NAME}", path, str(CLICKS), seconds=300).splitlines()[-1])
    total, ours = [one["answers"] for one in found], [one["ours"] for one in found]
    return [
        Row(
            f"click on a ready image on the node → server answers, p50 of {CLICKS}", f"{statistics.median(total):.2f} s"
        ),
        Row("the same, p95", f"{percentile(total, 95):.2f} s"),
        Row("our own part of it, p50", f"{statistics.median(ours) * 1000:.1f} ms", "≤ 10 ms"),
        Row("the same, p95", f"{percentile(ours, 95) * 1000:.1f} ms", "≤ 10 ms"),
    ]
