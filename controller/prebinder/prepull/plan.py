"""Which image goes onto which node before anybody clicks. Pure.

Requirements:
- The likeliest clicks come first: what was clicked lately, the latest click first; then default branches, the newest
  image first. Each image once.
- What a node has is not pulled again; what is over the node's budget is not pulled at all.
- Nodes that nobody's server could run on are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prebinder.config.kubernetes import Toleration
from prebinder.config.prepull import PrepullConfig
from prebinder.model.catalogue import Catalogue, ImageState, RepositoryEntry, RevisionEntry

UNKNOWN_SIZE = 2 * 10**9
"""Taken for an image of which no node says how large it is, while none does of any."""


@dataclass(frozen=True, slots=True)
class Click:
    """The latest click on a ref of a repository, as the catalogue spells it."""

    repository: str
    ref: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image that should wait on the nodes, by digest, and why."""

    image: str
    why: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of people's servers: its images (name to size in bytes), as its kubelet says."""

    name: str
    images: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pull:
    """One image onto one node."""

    image: str
    node: str


def wanted(catalogue: Catalogue, clicks: Iterable[Click], config: PrepullConfig) -> tuple[Wanted, ...]:
    """The images that should wait, the likeliest click first."""
    found: dict[str, Wanted] = {}
    entries = {_key(entry.repository): entry for entry in catalogue.repositories}
    for click in sorted(clicks, key=lambda c: c.at, reverse=True):
        entry = entries.get(_key(click.repository))
        if entry and (ready := _ready(entry, click.ref)):
            found.setdefault(str(ready.image), Wanted(str(ready.image), f"{entry.title}, {click.ref}: clicked"))
    if config.default_branch:
        newest = [(entry, ready) for entry in catalogue.repositories if (ready := _ready(entry, "HEAD"))]
        for entry, ready in sorted(newest, key=lambda pair: pair[1].since, reverse=True):
            found.setdefault(str(ready.image), Wanted(str(ready.image), f"{entry.title}: default branch"))
    return tuple(found.values())


def _key(repository: str) -> str:
    """GitHub ignores case in names."""
    return repository.casefold() if repository.startswith("gh/") else repository


def _ready(entry: RepositoryEntry, ref: str) -> RevisionEntry | None:
    revision = entry.revision_of(ref)
    found = entry.entry(revision) if revision else None
    return found if found and found.state is ImageState.READY and found.image else None


def missing(
    images: Sequence[Wanted], nodes: Sequence[Node], believed: frozenset[Pull], budget: int
) -> tuple[Pull, ...]:
    """What to pull, in this order: the likeliest image onto every node first, then the next.

    `believed` are pulls that came through, whether or not the node lists them: kubelets list only their largest images.
    """
    sizes = _sizes(nodes)
    fits = {node.name: _within(images, sizes, budget) for node in nodes}
    return tuple(
        pull
        for image in images
        for node in nodes
        if image.image in fits[node.name]
        and image.image not in node.images
        and (pull := Pull(image.image, node.name)) not in believed
    )


def held(images: Sequence[Wanted], node: Node, believed: frozenset[Pull]) -> int:
    """How many of the images are on the node."""
    return sum(w.image in node.images or Pull(w.image, node.name) in believed for w in images)


def _sizes(nodes: Iterable[Node]) -> dict[str, int]:
    return {image: size for node in nodes for image, size in node.images.items()}


def _within(images: Sequence[Wanted], sizes: Mapping[str, int], budget: int) -> frozenset[str]:
    """Those that fit, the likeliest first. Shared layers are counted each time: the disk holds rather more."""
    known = [sizes[w.image] for w in images if w.image in sizes]
    guess = sum(known) // len(known) if known else UNKNOWN_SIZE
    fit: set[str] = set()
    for image in images:
        size = sizes.get(image.image, guess)
        if size <= budget:
            fit.add(image.image)
            budget -= size
    return frozenset(fit)


def nodes_for_servers(items: Iterable[Mapping[str, Any]], config: PrepullConfig) -> tuple[Node, ...]:
    """The nodes (core/v1) that people's servers may run on now, by name."""
    found = []
    for item in items:
        labels = item["metadata"].get("labels") or {}
        spec, status = item.get("spec") or {}, item.get("status") or {}
        if (
            config.node_selector.items() <= labels.items()
            and not spec.get("unschedulable")
            and any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
            and all(_tolerated(taint, config.tolerations) for taint in spec.get("taints") or ())
        ):
            images = {n: int(i.get("sizeBytes") or 0) for i in status.get("images") or () for n in i.get("names") or ()}
            found.append(Node(item["metadata"]["name"], images))
    return tuple(sorted(found, key=lambda node: node.name))


def _tolerated(taint: Mapping[str, str], tolerations: Iterable[Toleration]) -> bool:
    """Kubernetes, "Taints and Tolerations". `PreferNoSchedule` keeps nothing away."""
    return taint.get("effect") == "PreferNoSchedule" or any(
        t.effect in (None, taint.get("effect"))
        and (t.key is None or t.key == taint.get("key"))
        and (t.operator == "Exists" or (t.key is not None and (t.value or "") == (taint.get("value") or "")))
        for t in tolerations
    )
