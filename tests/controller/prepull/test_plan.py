"""Which image goes onto which node, and what a pod that pulls is like."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.config.kubernetes import Toleration
from prebinder.config.prepull import PrepullConfig
from prebinder.model.catalogue import Catalogue, ImageState, RefEntry, RefKind, RepositoryEntry, RevisionEntry
from prebinder.prepull.plan import Click, Node, Pull, Wanted, held, missing, nodes_for_servers, wanted
from prebinder.prepull.pods import make_pull_pod, outcome, pod_name

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ON = PrepullConfig(enabled=True)


def repository(name: str, refs: dict[str, str], *, ready: set[str], default: str = "main", age: int = 0) -> Any:
    return RepositoryEntry(
        repository=f"gh/a/{name}", provider="gh", name=f"a/{name}", title=name, url="https://x", default_branch=default,
        refs=tuple(RefEntry(name=ref, kind=RefKind.BRANCH, revision=r) for ref, r in refs.items()),
        revisions=tuple(
            RevisionEntry(
                revision=r, state=ImageState.READY if r in ready else ImageState.BUILDING,
                since=NOW - timedelta(hours=age), image=f"reg/{name}@{r}" if r in ready else None,
            )
            for r in refs.values()
        ),
    )  # fmt: skip


def catalogue(*repositories: RepositoryEntry) -> Catalogue:
    return Catalogue(
        version="1", published_at=NOW, on_demand="none", image_prefix="reg/", repositories=tuple(repositories)
    )


def images(found: tuple[Wanted, ...]) -> list[str]:
    return [w.image for w in found]


def test_recent_clicks_come_before_default_branches_and_each_image_once() -> None:
    here = catalogue(
        repository("old", {"main": "1"}, ready={"1"}, age=9),
        repository("new", {"main": "2", "dev": "3"}, ready={"2", "3"}, age=1),
    )
    clicks = [Click("gh/a/new", "dev", NOW - timedelta(hours=2)), Click("gh/A/OLD", "HEAD", NOW - timedelta(hours=1))]
    assert images(wanted(here, clicks, ON)) == ["reg/old@1", "reg/new@3", "reg/new@2"]


def test_what_is_not_ready_or_not_known_is_not_wanted() -> None:
    here = catalogue(repository("a", {"main": "1"}, ready=set()))
    clicks = [Click("gh/a/a", "main", NOW), Click("gh/a/gone", "main", NOW), Click("gh/a/a", "nowhere", NOW)]
    assert wanted(here, clicks, ON) == ()


def test_default_branches_can_be_left_out() -> None:
    here = catalogue(repository("a", {"main": "1"}, ready={"1"}))
    assert wanted(here, [], ON.model_copy(update={"default_branch": False})) == ()


def test_what_a_node_has_is_not_pulled_again() -> None:
    nodes = [Node("n1", {"reg/a@1": 10}), Node("n2")]
    assert missing([Wanted("reg/a@1", "")], nodes, frozenset(), 100) == (Pull("reg/a@1", "n2"),)
    assert missing([Wanted("reg/a@1", "")], nodes, frozenset({Pull("reg/a@1", "n2")}), 100) == ()


def test_the_likeliest_image_comes_onto_every_node_before_the_next_one() -> None:
    nodes = [Node("n1"), Node("n2")]
    plan = missing([Wanted("a", ""), Wanted("b", "")], nodes, frozenset(), 10**12)
    assert plan == (Pull("a", "n1"), Pull("a", "n2"), Pull("b", "n1"), Pull("b", "n2"))


def test_what_is_over_the_budget_is_left_out_and_what_is_smaller_may_still_fit() -> None:
    sizes = {"big": 70, "huge": 50, "small": 20}
    plan = missing([Wanted(n, "") for n in sizes], [Node("has", sizes), Node("n")], frozenset(), 100)
    assert [p.image for p in plan if p.node == "n"] == ["big", "small"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 50)), unique_by=lambda t: t[0]),
    st.integers(1, 200),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_a_plan_keeps_to_the_budget_and_pulls_nothing_twice(
    sizes: list[tuple[str, int]], budget: int, has: set[str]
) -> None:
    known = dict(sizes)
    nodes = [Node("all", known), Node("n", {n: known[n] for n in has & known.keys()})]
    chosen = [Wanted(n, "") for n in known]
    plan = missing(chosen, nodes, frozenset(), budget)
    assert all(p.node == "n" and p.image not in nodes[1].images for p in plan)
    assert len(set(plan)) == len(plan)
    assert sum(known[p.image] for p in plan) <= budget


def test_how_many_images_a_node_holds() -> None:
    assert (
        held([Wanted("a", ""), Wanted("b", ""), Wanted("c", "")], Node("n", {"a": 1}), frozenset({Pull("b", "n")})) == 2
    )


def node(name: str = "n", **changes: Any) -> dict[str, Any]:
    ready = [{"type": "Ready", "status": changes.pop("ready", "True")}]
    return {
        "metadata": {"name": name, "labels": changes.pop("labels", {})},
        "spec": changes,
        "status": {"conditions": ready, "images": [{"names": ["reg/a@1", "reg/a:t"], "sizeBytes": 5}]},
    }


TAINT = {"key": "hub.jupyter.org/dedicated", "value": "user", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("item", "config", "taken"),
    [
        (node(), ON, True),
        (node(unschedulable=True), ON, False),
        (node(ready="Unknown"), ON, False),
        (node(taints=[TAINT]), ON, False),
        (node(taints=[TAINT]), PrepullConfig(tolerations=(Toleration(key=TAINT["key"], value="user"),)), True),
        (node(taints=[TAINT]), PrepullConfig(tolerations=(Toleration(key=TAINT["key"], value="core"),)), False),
        (node(taints=[TAINT]), PrepullConfig(tolerations=(Toleration(operator="Exists"),)), True),
        (node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), ON, True),
        (node(labels={"a": "b"}), PrepullConfig(node_selector={"a": "b"}), True),
        (node(labels={"a": "c"}), PrepullConfig(node_selector={"a": "b"}), False),
    ],
)
def test_only_nodes_that_servers_may_run_on_count(item: dict[str, Any], config: PrepullConfig, taken: bool) -> None:
    found = nodes_for_servers([item], config)
    assert bool(found) is taken
    if taken:
        assert found[0].images == {"reg/a@1": 5, "reg/a:t": 5}


def test_a_pod_that_pulls_may_do_less_than_anybody() -> None:
    config = PrepullConfig(pull_secrets=("pull",), tolerations=(Toleration(key="a", operator="Exists"),))
    pod = make_pull_pod(Pull("reg/a@sha256:00", "node-1"), config, "prebinder")
    spec, [container] = pod["spec"], pod["spec"]["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "volumes" not in spec
    assert "nodeName" not in spec  # the scheduler decides whether there is room
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"][0]["values"] == ["node-1"]
    assert spec["tolerations"] == [{"key": "a", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


def test_a_pull_has_one_name_and_another_pull_another() -> None:
    names = {pod_name(i, Pull(m, n)) for i in ("a", "b") for m in ("x", "y") for n in ("1", "2")}
    assert len(names) == 8
    assert pod_name("a", Pull("x", "1")) == pod_name("a", Pull("x", "1"))
    assert all(len(n) <= 63 for n in names)


def state(**container: Any) -> dict[str, Any]:
    return {"status": {"phase": "Pending", "containerStatuses": [{"state": container}]}}


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        ({}, None),
        ({"status": {"phase": "Pending"}}, None),
        (state(waiting={"reason": "ContainerCreating"}), None),
        (state(running={}), (True, "")),
        (state(terminated={"exitCode": 0}), (True, "")),
        (state(terminated={"exitCode": 127}), (True, "")),
        (state(waiting={"reason": "RunContainerError", "message": "no true"}), (True, "")),
        (state(waiting={"reason": "ErrImagePull", "message": "x:\nnot found"}), (False, "x: not found")),
        (state(waiting={"reason": "ImagePullBackOff"}), (False, "ImagePullBackOff")),
        ({"status": {"phase": "Failed", "reason": "Evicted"}}, (False, "Evicted")),
        (
            {"status": {"conditions": [{"type": "PodScheduled", "reason": "Unschedulable", "message": "full"}]}},
            (False, "full"),
        ),
    ],
)
def test_what_a_pods_state_says_about_the_image(pod: dict[str, Any], said: tuple[bool, str] | None) -> None:
    assert outcome(pod) == said
