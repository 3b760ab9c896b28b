"""What a build's pod may reach, on a real cluster, under the chart's own NetworkPolicy for builds.

Cloud metadata is checked on the manifest: no test sends anything there.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prebinder.builders.kubernetes.names import labels
from tests.support.cluster_builds import Site, run, text
from tests.support.kube import Cluster
from tests.support.scripted_pod import DIGEST, scripted_order
from tests.support.values import LEAST, merged

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]

CHART = Path(__file__).parents[4] / "charts" / "prebinder"
METADATA = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200")


def rendered(cluster: Cluster, namespace: str, **builds: Any) -> dict[str, Any]:
    """The chart's policy for builds."""
    values = merged(LEAST, {"networkPolicy": {"builds": builds}})
    out = cluster.run(
        *("helm", "template", "pb", CHART, "--namespace", namespace, "--values", "-"),
        *("--show-only", "templates/networkpolicies.yaml"),
        stdin=json.dumps(values),
    )
    policies = [policy for policy in yaml.safe_load_all(out) if policy]
    (found,) = [policy for policy in policies if policy["metadata"]["name"].endswith("-builds")]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def policy(site: Site, cluster: Cluster, namespace: str) -> Iterator[dict[str, Any]]:
    found = rendered(cluster, namespace)
    cluster.apply(found, namespace)
    yield found
    cluster.kubectl("-n", namespace, "delete", "networkpolicy", found["metadata"]["name"])


def tries(*addresses: str, enforced_when_closed: str = "") -> str:
    """A build that says of each address whether anybody answers there.

    Policies are enforced a moment after a pod has its address: first it waits until they are, which is when nobody
    answers any more at the address `enforced_when_closed`.
    """
    pairs = [address.rpartition(":") for address in addresses]
    lines = "\n".join(
        f"nc -w 4 {host} {port} </dev/null 2>/dev/null && log building '{host}:{port} answers' "
        f"|| log building '{host}:{port} is closed'"
        for host, _, port in pairs
    )
    first = ""
    if enforced_when_closed:
        host, _, port = enforced_when_closed.rpartition(":")
        first = f"for n in $(seq 60); do nc -w 4 {host} {port} </dev/null 2>/dev/null || break; sleep 1; done\n"
    return f"case $ROLE in build) {first}{lines};; push) pushed {DIGEST};; esac"


def api_servers(cluster: Cluster) -> list[str]:
    """Every address of the API server: the service, and what stands behind it."""
    (service,) = [s for s in cluster.get("services", "default") if s["metadata"]["name"] == "kubernetes"]
    slices = cluster.get("endpointslices", "default", "kubernetes.io/service-name=kubernetes")
    behind = [f"{a}:{s['ports'][0]['port']}" for s in slices for e in s["endpoints"] for a in e["addresses"]]
    return [f"{service['spec']['clusterIP']}:443", *behind]


async def test_without_a_policy_the_api_server_answers(site: Site, cluster: Cluster) -> None:
    """The test below would not notice a pod that has no network at all."""
    addresses = await asyncio.to_thread(api_servers, cluster)
    async with site.builder() as builder:
        said = text(await run(builder, scripted_order(tries(*addresses))))
    assert said == "".join(f"{address} answers\n" for address in addresses)


async def test_a_build_reaches_neither_the_api_server_nor_the_registry_by_itself(
    site: Site, cluster: Cluster, policy: dict[str, Any]
) -> None:
    addresses = await asyncio.to_thread(api_servers, cluster)
    script = tries(*addresses, *filter(None, [cluster.registry]), enforced_when_closed=addresses[0])
    if cluster.registry:
        addresses.append(cluster.registry)
    async with site.builder() as builder:
        said = text(await run(builder, scripted_order(script)))
    assert said == "".join(f"{address} is closed\n" for address in addresses)


async def test_what_the_operator_names_is_open(site: Site, cluster: Cluster, namespace: str) -> None:
    if cluster.registry is None:
        pytest.skip("KUBE_REGISTRY names no registry that pods reach")
    host, _, port = cluster.registry.partition(":")
    rule = {"to": [{"ipBlock": {"cidr": f"{host}/32"}}], "ports": [{"protocol": "TCP", "port": int(port)}]}
    found = await asyncio.to_thread(rendered, cluster, namespace, extraEgress=[rule])
    await asyncio.to_thread(cluster.apply, found, namespace)
    try:
        async with site.builder() as builder:
            [api_server, *_] = api_servers(cluster)
            script = tries(cluster.registry, api_server, enforced_when_closed=api_server)
            said = text(await run(builder, scripted_order(script)))
    finally:
        await site.kubectl("delete", "networkpolicy", found["metadata"]["name"])
    first, second = said.splitlines()
    assert first == f"{cluster.registry} answers"
    assert second.endswith("is closed")


@pytest.mark.parametrize("address", METADATA)
def test_metadata_addresses_are_in_no_rule(policy: dict[str, Any], address: str) -> None:
    for rule in policy["spec"]["egress"]:
        if rule.get("ports") and all(port.get("port") == 53 for port in rule["ports"]):
            continue  # names are asked of whatever resolver the cluster has, and that may be a link-local address
        for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]):
            block = peer.get("ipBlock")
            if block is None:
                continue
            wide = ipaddress.ip_network(block["cidr"])
            excepted = [ipaddress.ip_network(cidr) for cidr in block.get("except", [])]
            here = ipaddress.ip_address(address)
            inside = here.version == wide.version and here in wide
            assert not inside or any(here.version == e.version and here in e for e in excepted), rule


def test_the_policy_selects_builds(policy: dict[str, Any]) -> None:
    ours = labels("prebinder", scripted_order(""))
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= ours.items()
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not policy["spec"].get("ingress")
