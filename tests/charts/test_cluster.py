"""The chart on a real cluster: install, click, culled; upgrades and rollbacks that lose no click; faults; uninstall.

One release for the module; each test leaves it as it was, and the last one takes it away. Images are put where builds
would have put them; builds themselves have tests of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, NAME, RELEASE, Installed, installed, phases, server_name
from tests.support.images import Images
from tests.support.kube import Cluster
from tests.support.values import LEAST, TABLE, merged

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]
IDLE = 25

# Kinds of operators that a cluster need not have: their shape is looked at in test_templates.py.
_FOREIGN = ("monitoring.coreos.com/", "gateway.networking.k8s.io/")
_FETCH = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    print(answer.status, answer.read(100000).decode(errors="replace"))
"""
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("open")
except OSError as error:
    print("closed", error)
"""


@pytest.fixture(scope="module")
def here(cluster: Cluster, namespace: str, images: Images) -> Iterator[Installed]:
    with installed(cluster, namespace, images, hub={"idle": IDLE, "cullEvery": 3, "pullPatience": 5}) as release:
        yield release


@pytest.fixture(scope="module")
def opened(here: Installed) -> dict[str, Any]:
    """The `ready` event of a click, and all events before it."""
    events = here.click("course")
    assert events[-1]["phase"] == "ready", events
    return {**events[-1], "events": events}


@pytest.fixture
def server(here: Installed, opened: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same, in use for as long as a test looks at its server."""
    with here.used(opened):
        yield opened


@pytest.mark.parametrize("name", TABLE)
def test_the_api_server_takes_what_the_chart_renders(cluster: Cluster, namespace: str, name: str) -> None:
    command = ("helm", "template", RELEASE, str(CHART), "--namespace", namespace, "--values", "-")
    text = cluster.run(*command, stdin=yaml.safe_dump(merged(LEAST, TABLE[name])))
    objects = [o for o in yaml.safe_load_all(text) if o and not o["apiVersion"].startswith(_FOREIGN)]
    for o in objects:
        # The namespace that a release would make is not there in a dry run.
        if o["metadata"].get("namespace"):
            o["metadata"]["namespace"] = namespace
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=bundle)


def test_a_click_ends_in_a_running_server(here: Installed, server: dict[str, Any]) -> None:
    assert phases(server["events"])[-3:] == ["built", "launching", "ready"]
    status, _, body = here.python(_FETCH, f"{server['url']}api/status?token={server['token']}").partition(" ")
    assert status == "200"
    assert "started" in body


def test_a_server_has_no_token_no_privilege_and_the_links_environment(here: Installed, server: dict[str, Any]) -> None:
    pod = _pod_of(here, server)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["hostUsers"] is False
    assert not any("projected" in v or "hostPath" in v for v in spec.get("volumes", []))
    assert container["image"].startswith(f"{here.prefix}git")
    assert "@sha256:" in container["image"]
    security = container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["resources"]["limits"]["memory"]
    environment = {e["name"]: e.get("value", "") for e in container["env"]}
    assert environment["BINDER_REPO_URL"] == here.git_url("course")
    assert environment["BINDER_PERSISTENT_REQUEST"].startswith("v2/git/")
    assert not {"JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "JUPYTERHUB_CLIENT_ID"} & environment.keys()


def test_a_server_reaches_neither_the_cluster_nor_its_neighbours(here: Installed, server: dict[str, Any]) -> None:
    pod = _pod_of(here, server)
    command = ("exec", pod["metadata"]["name"], "--", "python3", "-c", _CONNECT)
    controller = here.pods("controller")[0]["status"]["podIP"]
    for host, port in (("kubernetes.default.svc", 443), ("proxy-public", 80), (controller, 8587), (NAME, 80)):
        assert here.kubectl(*command, host, str(port)).startswith("closed"), host
    assert here.kubectl(*command, "127.0.0.1", "8888").strip() == "open"  # the question itself works


def test_an_idle_server_is_culled(here: Installed, opened: dict[str, Any]) -> None:
    name = server_name(opened["url"])
    here.cluster.wait("the end of the idle server", lambda: not [p for p in here.servers() if _is_of(p, name)], 90)


def test_helm_test_makes_a_click(here: Installed) -> None:
    said = here.helm("test", RELEASE, "--timeout", "100s")
    assert "Succeeded" in said


def test_an_image_that_cannot_be_pulled_is_told_in_seconds(here: Installed) -> None:
    script = _HUB_LAUNCH.replace("IMAGE", f"{here.prefix}gone@sha256:{'0' * 64}").replace("TOKEN", here.hub_token)
    seconds, message = here.python(script).split(" ", 1)
    assert "cannot be pulled" in message
    assert "not found" in message
    assert float(seconds) < 60
    here.cluster.wait("the end of its pod", lambda: not [p for p in here.servers() if _is_of(p, "unlucky")], 60)


def test_the_hub_starts_no_image_of_another_prefix(here: Installed) -> None:
    script = _HUB_LAUNCH.replace("IMAGE", f"{here.images.registry}/other/image:1").replace("TOKEN", here.hub_token)
    assert "Only images whose name begins with" in here.python(script)


def test_a_changed_configuration_is_picked_up_without_a_restart_and_rolled_back(here: Installed) -> None:
    before = {p["metadata"]["uid"] for c in ("controller", "endpoint") for p in here.pods(c)}
    revision = here.push("second", {"README.md": "two"})
    here.publish("second", revision)
    repositories = [{"git": here.git_url("course")}, {"git": here.git_url("second")}]
    old = here.values
    with here.clicking("course"):
        here.upgrade({"config": {"repositories": repositories}})
        here.cluster.wait("the second repository", lambda: _registered(here) == {"course", "second"}, 100)
        assert here.click("second", "?build_only=true")[-1]["phase"] == "ready"
        here.helm("rollback", RELEASE, "--wait", "--timeout", "100s")
        here.values = old
        here.cluster.wait("the first configuration", lambda: _registered(here) == {"course"}, 100)
    assert {p["metadata"]["uid"] for c in ("controller", "endpoint") for p in here.pods(c)} == before


def test_a_change_of_what_endpoints_read_once_replaces_them_and_loses_no_click(here: Installed) -> None:
    before = {p["metadata"]["uid"] for p in here.pods("endpoint")}
    with here.clicking("course"):
        here.upgrade({"config": {"site": {"title": "Another title"}}})
        here.cluster.wait("the end of the old ones", lambda: not before & _uids(here), 60)
    assert not before & {p["metadata"]["uid"] for p in here.pods("endpoint")}


def test_an_endpoint_killed_in_mid_click_costs_a_reconnect_and_nothing_more(here: Installed) -> None:
    lines: list[dict[str, Any]] = []
    for _ in range(5):  # the click may have ended before its endpoint was killed
        click = here.start_click("course")
        assert click.stdout is not None
        lines = []
        for line in click.stdout:
            lines.append(json.loads(line))
            if lines[-1]["phase"] == "launching":
                break
        command = ["delete", "pod", "-l", "app.kubernetes.io/component=endpoint", "--grace-period=0", "--force"]
        here.kubectl(*command, "--wait=false")
        lines += [json.loads(line) for line in click.stdout]  # to its end: `communicate` forgets what is buffered here
        click.wait(timeout=150)
        assert lines[-1]["phase"] == "ready", lines
        here.kubectl("rollout", "status", f"deployment/{NAME}-endpoint", "--timeout=60s")
        if lines[-1]["opened"] >= 2:
            break
    assert lines[-1]["opened"] >= 2


def test_a_click_on_a_ready_image_needs_no_controller(here: Installed) -> None:
    here.kubectl("scale", f"deployment/{NAME}-controller", "--replicas=0")
    try:
        component = "app.kubernetes.io/component=controller"
        gone = "the end of the controller"
        here.cluster.wait(gone, lambda: not here.cluster.get("pods", here.namespace, component), 90)
        events = here.click("course", "?build_only=true")
        assert events[-1]["phase"] == "ready", events
        # Neither does an endpoint that has never met one: it knows from the configuration what is registered.
        before = _uids(here)
        here.kubectl("rollout", "restart", f"deployment/{NAME}-endpoint")
        here.cluster.wait("the end of the old ones", lambda: not before & _uids(here), 240)
        events = here.click("course", "?build_only=true")
        assert events[-1]["phase"] == "ready", events
    finally:
        here.kubectl("scale", f"deployment/{NAME}-controller", "--replicas=1")
        here.kubectl("rollout", "status", f"deployment/{NAME}-controller", "--timeout=60s")


def test_the_token_between_the_parts_outlives_an_upgrade(here: Installed) -> None:
    def token() -> str:
        return here.kubectl("get", "secret", f"{NAME}-controller-token", "-o", "jsonpath={.data.token}")

    before = token()
    here.upgrade({"config": {"site": {"title": "Named anew"}}})
    assert token() == before


def test_uninstall_leaves_nothing(here: Installed) -> None:
    here.cluster.wait("the end of all servers", lambda: not here.servers(), 120)
    for release in (RELEASE, "hub"):
        here.helm("uninstall", release, "--wait", "--timeout", "60s")
    kinds = here.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    ours = [k for k in kinds if not k.startswith(("events", "podmetrics"))]

    def left() -> set[str]:
        said = here.kubectl("get", ",".join(ours), "-o", "name", "--ignore-not-found")
        return {line for line in said.split() if not _of_the_cluster(line)}

    here.cluster.wait("the end of everything", lambda: not left(), 60)
    cluster_wide = here.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert here.namespace not in cluster_wide


_HUB_LAUNCH = """
import json, time, urllib.request
def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": "token TOKEN", "content-type": "application/json"}
    url = f"http://proxy-public/hub/api/users/unlucky{path}"
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60)
started = time.monotonic()
ask("POST", "", {})
message = ""
try:
    try:
        ask("POST", "/server", {"image": "IMAGE", "token": "t" * 32, "repo_url": "x"})
    except urllib.error.HTTPError as error:
        message = json.loads(error.read())["message"]
    else:
        with ask("GET", "/server/progress") as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if event.get("failed") or event.get("ready"):
                        message = event["message"]
                        break
finally:
    ask("DELETE", "")
print(round(time.monotonic() - started, 1), message)
"""


def _of_the_cluster(name: str) -> bool:
    """What every namespace has, and the tests' Git server."""
    own = ("configmap/kube-root-ca.crt", "serviceaccount/default")
    return name in own or name.partition("/")[2].startswith("git") or "endpointslice" in name


def _registered(here: Installed) -> set[str]:
    """The registered repositories, as the controller says once it has looked at its configuration."""
    here.look_at_configuration_now()
    found = [r["repository"] for r in here.controller_status().get("repositories", [])]
    return {name.rpartition("%2F")[2].removesuffix(".git") for name in found}


def _uids(here: Installed) -> set[str]:
    """Of all endpoints, those that are ending too."""
    found = here.cluster.get("pods", here.namespace, "app.kubernetes.io/component=endpoint")
    return {p["metadata"]["uid"] for p in found}


def _pod_of(here: Installed, server: dict[str, Any]) -> dict[str, Any]:
    name = server_name(server["url"])
    return next(pod for pod in here.servers() if _is_of(pod, name))


def _is_of(pod: dict[str, Any], user: str) -> bool:
    return bool(pod["metadata"]["annotations"].get("hub.jupyter.org/username") == user)
