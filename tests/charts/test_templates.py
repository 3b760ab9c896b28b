"""The charts without a cluster: what they render, and what they refuse."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prebinder.config import parse
from prebinder.config.watch import CONTROLLER_READS_ONCE, ENDPOINT_READS_ONCE
from prebinder_site import jupyterhub
from tests.support.chart import CHART, ROOT
from tests.support.values import LEAST, TABLE, merged

pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
UMBRELLA = ROOT / "charts" / "prebinder-hub"


def helm(*arguments: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *arguments, "--values", "-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(values: dict[str, Any], *, release: str = "pb") -> list[dict[str, Any]]:
    done = helm("template", release, str(CHART), "--namespace", "ns", values=merged(LEAST, values))
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of {[(o['kind'], o['metadata']['name']) for o in objects]}"
    return found[0]


def configuration(objects: list[dict[str, Any]]) -> dict[str, Any]:
    text = one(objects, "ConfigMap", "pb-prebinder")["data"]["prebinder.yaml"]
    return dict(yaml.safe_load(text))


def pod_specs(objects: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (o["metadata"]["name"], o["spec"] if o["kind"] == "Pod" else o["spec"]["template"]["spec"])
        for o in objects
        if o["kind"] in ("Deployment", "Pod")
    ]


def test_schema_readme_and_hub_module_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools/chart.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_values_yaml_has_exactly_the_values_that_are_documented() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r})\nimport chart; print(*chart.keys(chart.Values))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    documented = set(done.stdout.split())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def flat(node: Any, prefix: str) -> set[str]:
        if prefix.rstrip(".") in documented:
            return {prefix.rstrip(".")}
        assert isinstance(node, dict), f"{prefix} is not documented"
        return set().union(*(flat(value, f"{prefix}{key}.") for key, value in node.items())) if node else {prefix}

    assert flat(defaults, "") == documented


@pytest.mark.parametrize("chart", [CHART, ROOT / "tests/charts/hub"], ids=["prebinder", "the tests' hub"])
def test_lint_is_content(chart: Path) -> None:
    done = helm("lint", "--strict", str(chart), values=LEAST if chart == CHART else {})
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("values", "said"), [
    ({"config": {"limits": {"parallel": 1000}}}, "at '/config/limits/parallel': maximum: got 1,000, want 64"),
    ({"config": {"repositorys": []}}, "at '/config': additional properties 'repositorys' not allowed"),
    ({"config": {"repositories": [{"githup": "a/b"}]}}, "additional properties 'githup' not allowed"),
    ({"config": {"hub": {"token": {"evn": "X"}}}}, "'evn' not allowed"),
    ({"endpoint": {"replicas": "two"}}, "at '/endpoint/replicas': got string, want integer"),
    ({"endpoints": {}}, "additional properties 'endpoints' not allowed"),
    ({"image": {"digest": "abc"}}, "at '/image/digest'"),
    ({"hub": {"url": "proxy-public"}}, "at '/hub/url'"),
    ({"hub": {"url": ""}}, "hub.url is not set"),
    ({"hub": {"tokenSecret": {"name": ""}}}, "hub.tokenSecret.name is not set"),
    ({"config": {"registry": {"prefix": None}}}, "config.registry.prefix is not set"),
    ({"controller": {"replicas": 2}}, "needs controller.lease=true"),
    ({"controller": {"replicas": 2, "lease": True}}, "config.ledger.url names no PostgreSQL database"),
    ({"controller": {"replicas": 2, "lease": True}, "config": {"ledger": {"url": "postgresql://a@b/c"}}},
     "accessModes to [ReadWriteMany]"),
    ({"config": {"prepull": {"namespace": "servers"}}}, "Set builds.namespace instead"),
    ({"config": {"builder": {"kubernetes": {"namespace": "other"}}}}, "Set builds.namespace instead"),
    ({"registry": {"enabled": True}}, "registry.host is not set"),
    ({"gateway": {"enabled": True}}, "gateway.parentRefs is empty"),
    ({"builds": {"quota": {"pods": "9"}}}, "give builds a namespace of their own"),
])  # fmt: skip
def test_a_wrong_value_fails_with_words_that_say_which(values: dict[str, Any], said: str) -> None:
    done = helm("template", "pb", str(CHART), values=merged(LEAST, values))
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("name", TABLE)
def test_the_configuration_in_the_pods_is_valid(name: str, tmp_path: Path) -> None:
    """Secrets are files in the pods; here they are files too."""
    config = configuration(render(TABLE[name]))
    text = yaml.safe_dump(config).replace("/etc/prebinder/secrets", str(tmp_path))
    for folder in ("controller", "hub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "token").write_text("x" * 40)
    checked = parse(text)
    assert checked.builder.kind == "kubernetes"
    assert checked.controller.url == "http://pb-prebinder-controller:8587"


def test_what_the_configuration_says_wins() -> None:
    config = configuration(render({"config": {"site": {"title": "Mine"}, "builder": {"kubernetes": {"image": "i:1"}}}}))
    assert config["site"] == {"title": "Mine", "address": "0.0.0.0"}
    assert config["builder"]["kubernetes"]["image"] == "i:1"
    assert config["builder"]["kubernetes"]["namespace"] == "ns"


def test_a_change_of_the_configuration_changes_no_pod() -> None:
    """It is picked up by the running ones: mounted as a folder, without a checksum on the pods."""
    before, after = render({}), render({"config": {"limits": {"parallel": 9}}})
    assert configuration(before) != configuration(after)
    assert pod_specs(before) == pod_specs(after)
    for _, spec in pod_specs(before):
        mounts = [m for c in spec["containers"] for m in c["volumeMounts"]]
        assert all("subPath" not in m for m in mounts)


def test_prometheus_gets_in_when_only_some_may() -> None:
    some = {"networkPolicy": {"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]}}
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    for enabled in (True, False):
        objects = render({**some, "monitoring": {"serviceMonitor": {"enabled": enabled}}})
        for half in ("controller", "endpoint"):
            policy = one(objects, "NetworkPolicy", f"pb-prebinder-{half}")
            assert (prometheus in policy["spec"]["ingress"][0]["from"]) is enabled


def replaced_by(change: dict[str, Any]) -> set[str]:
    """The halves whose pods a changed configuration replaces."""
    before, after = render({}), render({"config": change})
    return {
        half
        for half in ("controller", "endpoint")
        if one(before, "Deployment", f"pb-prebinder-{half}") != one(after, "Deployment", f"pb-prebinder-{half}")
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("builder.kind", "local"),
        ("controller", {"url": "http://elsewhere.example.org"}),
        ("hosts", {"timeout": 7}),
        ("hub", {"max_servers": 5}),
        ("ledger", {"url": "postgresql://a@b/c"}),
        ("polling.click_budget", 0.5),
        ("polling.stale_after", 77),
        ("registry", {"prefix": "other.example.org/binder/"}),
        ("site", {"title": "Mine"}),
    ],
)
def test_what_a_half_reads_once_replaces_its_pods(key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    change = {section: {name: value} if name else value}
    reads = {"controller": CONTROLLER_READS_ONCE, "endpoint": ENDPOINT_READS_ONCE}
    assert replaced_by(change) == {half for half, keys in reads.items() if key in keys}


@pytest.mark.parametrize(
    "change",
    [
        {"repositories": [{"github": "c/d"}]},
        {"limits": {"parallel": 9}},
        {"on_demand": "none"},
        {"polling": {"interval": 99}},
        {"builder": {"build_pack": "pip", "kubernetes": {"cpu_request": 0.7}}},
        {"prepull": {"enabled": False}},
    ],
    ids=str,
)
def test_anything_else_replaces_none(change: dict[str, Any]) -> None:
    assert replaced_by(change) == set()


@pytest.mark.parametrize("name", TABLE)
def test_no_pod_has_a_privilege(name: str) -> None:
    for pod, spec in pod_specs(render(TABLE[name])):
        assert spec["securityContext"]["runAsNonRoot"] is True, pod
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        assert not any("hostPath" in v for v in spec["volumes"]), pod
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), pod
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["capabilities"] == {"drop": ["ALL"]}, pod
            assert security["readOnlyRootFilesystem"] is True, pod
            assert security["allowPrivilegeEscalation"] is False, pod
            assert container["resources"]["requests"], pod


def test_only_the_controller_speaks_to_the_cluster() -> None:
    objects = render({})
    assert [s["metadata"]["name"] for s in objects if s["kind"] == "RoleBinding"] == ["pb-prebinder-builds"]
    endpoint = one(objects, "Deployment", "pb-prebinder-endpoint")["spec"]["template"]["spec"]
    assert endpoint["automountServiceAccountToken"] is False
    assert not any(o["kind"] in ("ClusterRole", "ClusterRoleBinding") for o in objects)


@pytest.mark.parametrize("name", TABLE)
def test_every_verb_is_named_and_no_secret_is_readable(name: str) -> None:
    for role in (o for o in render(TABLE[name]) if o["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert "secrets" not in rule["resources"]
            assert not {"pods/exec", "pods/attach", "pods/ephemeralcontainers"} & set(rule["resources"])


def test_every_verb_has_a_comment_that_says_why() -> None:
    lines = (CHART / "templates" / "rbac.yaml").read_text().splitlines()
    verbs = [line for line in lines if line.strip().removeprefix("- ").partition(" ")[0]
             in {"get", "list", "watch", "create", "update", "patch", "delete"}]  # fmt: skip
    assert len(verbs) > 10
    assert [line for line in verbs if "# " not in line] == []


def test_webhooks_and_nothing_else_of_the_controller_are_reachable_from_outside() -> None:
    paths = one(render({"ingress": {"enabled": True, "host": "b.example.org"}}), "Ingress", "pb-prebinder")
    backends = {p["path"]: p["backend"]["service"]["name"] for p in paths["spec"]["rules"][0]["http"]["paths"]}
    assert backends == {"/hooks/": "pb-prebinder-controller", "/": "pb-prebinder"}
    route = one(render({"gateway": {"enabled": True, "parentRefs": [{"name": "g"}]}}), "HTTPRoute", "pb-prebinder")
    targets = {r["matches"][0]["path"]["value"]: r["backendRefs"][0]["name"] for r in route["spec"]["rules"]}
    assert targets == backends


def test_webhooks_come_from_wherever_the_site_is_reached_from() -> None:
    """A load balancer, or an ingress controller in its node's network, is no pod that a selector could mean."""
    route = {"ingress": {"enabled": True, "host": "b.example.org"}}
    (rule,) = one(render(route), "NetworkPolicy", "pb-prebinder-controller")["spec"]["ingress"]
    assert "from" not in rule
    peer = {"podSelector": {"matchLabels": {"a": "b"}}}
    some = render({**route, "networkPolicy": {"from": [peer]}})
    (rule,) = one(some, "NetworkPolicy", "pb-prebinder-controller")["spec"]["ingress"]
    assert peer in rule["from"]
    (rule,) = one(render({}), "NetworkPolicy", "pb-prebinder-controller")["spec"]["ingress"]
    assert len(rule["from"]) == 1  # the endpoint alone


def test_the_hub_of_the_release_reaches_servers_in_another_namespace() -> None:
    policy = one(render({"servers": {"namespace": "people"}}), "NetworkPolicy", "pb-prebinder-servers")
    assert policy["metadata"]["namespace"] == "people"
    named = [p["namespaceSelector"]["matchLabels"] for p in policy["spec"]["ingress"][0]["from"] if len(p) == 2]
    assert named == [{"kubernetes.io/metadata.name": "ns"}]


def test_the_way_controllers_are_replaced_is_said_in_full() -> None:
    """What was said is what goes again; a default of the API server would stay beside `Recreate`, which it refuses."""
    one_controller = one(render({}), "Deployment", "pb-prebinder-controller")["spec"]["strategy"]
    assert one_controller == {"type": "Recreate", "rollingUpdate": None}
    several = one(render(TABLE["many controllers"]), "Deployment", "pb-prebinder-controller")["spec"]["strategy"]
    assert several["type"] == "RollingUpdate"
    assert several["rollingUpdate"]


def test_builds_and_servers_reach_neither_private_addresses_nor_cloud_metadata() -> None:
    """No test sends anything to a metadata address: the manifest is what is looked at."""
    objects = render({})
    for name in ("pb-prebinder-builds", "pb-prebinder-servers"):
        policy = one(objects, "NetworkPolicy", name)["spec"]
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule.get("to", ())]
        assert all(set(to) == {"ipBlock"} for rule in policy["egress"] for to in rule.get("to", ()))
        v4 = next(b for b in blocks if b["cidr"] == "0.0.0.0/0")
        assert {"168.63.129.16/32", "169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(
            v4["except"]
        )
        v6 = next(b for b in blocks if b["cidr"] == "::/0")
        assert {"fc00::/7", "fe80::/10"} <= set(v6["except"])


def test_each_alert_asks_for_a_metric_that_exists() -> None:
    rule = one(render({"monitoring": {"prometheusRule": {"enabled": True}}}), "PrometheusRule", "pb-prebinder")
    code = "".join(p.read_text() for f in ("controller", "launcher-site") for p in (ROOT / f).rglob("metrics.py"))
    for alert in rule["spec"]["groups"][0]["rules"]:
        names = [
            w for w in alert["expr"].replace("(", " ").replace("{", " ").split() if w.startswith(("binder", "preb"))
        ]
        for name in names:
            assert f'"{name.removesuffix("_total")}"' in code, name
        assert alert["annotations"]["description"]


def test_names_fit_however_long_the_release_is_called() -> None:
    for o in render(TABLE["everything"], release="a" * 53):
        assert len(o["metadata"]["name"]) <= 63 or o["kind"].startswith("ClusterRole"), o["metadata"]["name"]
        assert all(len(v) <= 63 for v in o["metadata"]["labels"].values())


def test_the_umbrella_gives_prebinder_the_scopes_that_one_machine_gives_it() -> None:
    from pydantic import SecretStr
    from traitlets.config import Config

    values = yaml.safe_load((UMBRELLA / "values.yaml").read_text())["jupyterhub"]["hub"]
    c = Config()
    secret = SecretStr("x")
    jupyterhub.configure(
        c,
        jupyterhub.HubSettings(
            public_bind_url="http://x", hub_port=1, proxy_api_url="http://x", proxy_token=secret,
            prebinder_token=secret, culler_token=secret, database="sqlite://", cookie_secret_file=Path("x"),
            image_prefix="x",
        ),
    )  # fmt: skip
    roles = {role["name"]: role for role in c.JupyterHub.load_roles}
    assert values["loadRoles"]["prebinder"]["scopes"] == roles["prebinder"]["scopes"]
    assert values["loadRoles"]["user"]["scopes"] == roles["user"]["scopes"] == []
    assert list(values["services"]) == ["prebinder"]


def test_the_module_in_the_umbrella_runs_as_the_hub_would_run_it(tmp_path: Path) -> None:
    """The values carry the module as files, and a piece of configuration that imports it."""
    hub = yaml.safe_load((UMBRELLA / "values.yaml").read_text())["jupyterhub"]["hub"]
    for file in hub["extraFiles"].values():
        target = tmp_path / file["mountPath"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file["stringData"])
    (tmp_path / "z2jh.py").write_text("def get_config(key):\n    return {'image_prefix': 'r.example.org/b/'}\n")
    code = hub["extraConfig"]["prebinder"].replace("/usr/local/share", f"{tmp_path}/usr/local/share")
    script = f"from traitlets.config import Config\nc = Config()\n{code}\nprint(c.JupyterHub.spawner_class.__name__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "PrebinderKubeSpawner", done.stderr


def umbrella(tmp_path: Path, image_prefix: str) -> subprocess.CompletedProcess[str]:
    """JupyterHub's chart is not of this repository: an empty one of its name stands where `helm dependency` puts it."""
    chart = tmp_path / "prebinder-hub"
    shutil.copytree(UMBRELLA, chart)
    shutil.copytree(CHART, chart / "charts" / "prebinder")
    (chart / "charts" / "jupyterhub").mkdir()
    (chart / "charts" / "jupyterhub" / "Chart.yaml").write_text("apiVersion: v2\nname: jupyterhub\nversion: 4.0.0\n")
    own = {"config": LEAST["config"], "hub": {"publicUrl": "https://hub.example.org"}}
    hub = {"custom": {"prebinder": {"image_prefix": image_prefix}}}
    return helm("template", "pb", str(chart), "--namespace", "ns", values={"prebinder": own, "jupyterhub": hub})


@pytest.mark.parametrize(("prefix", "said"), [("", "is missing"), ("r.example.org/other/", "the same in both")])
def test_the_umbrella_refuses_two_halves_that_do_not_fit(tmp_path: Path, prefix: str, said: str) -> None:
    done = umbrella(tmp_path, prefix)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_umbrella_wires_prebinder_to_its_hub(tmp_path: Path) -> None:
    done = umbrella(tmp_path, "r.example.org/binder/")
    assert done.returncode == 0, done.stderr
    objects = [o for o in yaml.safe_load_all(done.stdout) if o]
    hub = configuration(objects)["hub"]
    assert hub["url"] == "http://proxy-public"
    assert hub["token"] == {"file": "/etc/prebinder/secrets/hub/hub.services.prebinder.apiToken"}
    volumes = one(objects, "Deployment", "pb-prebinder-endpoint")["spec"]["template"]["spec"]["volumes"]
    assert next(v for v in volumes if v["name"] == "secret-hub")["secret"]["secretName"] == "hub"
