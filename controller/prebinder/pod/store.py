"""What buildah's storage holds, read from its files: the images on the way to one, and the one in the builder image.

Source: containers/storage (`<driver>-images/images.json`, `<driver>-images/<id>/=<base64 of the name>`) as Debian 12's
buildah 1.28 writes it; asking buildah for each image takes seconds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prebinder.builders.kubernetes.wire import PRELOADED, PRELOADED_BASE
from prebinder.pod.layout import BadLayout, diff_ids_of


def preloaded(store: Path = Path(PRELOADED)) -> bytes | None:
    """The configuration of the base image that the builder image holds; None when it holds none.

    Its SHA-256 is the image's id.
    """
    images = store / "overlay-images"
    try:
        known = json.loads((images / "images.json").read_text())
    except (OSError, ValueError):
        return None
    found = next((image["id"] for image in known if PRELOADED_BASE in image.get("names", ())), None)
    return configuration(images / found) if found else None


def steps(images: Path, image: str) -> list[bytes]:
    """The configurations of the images that `--layers` kept on the way to the image of that id, in their order.

    `images` is the storage's folder of images.
    """
    configs = {entry.name: config for entry in images.iterdir() if (config := configuration(entry)) is not None}
    final = configs.pop(image, None)
    if final is None:
        return []
    led = [config for config in configs.values() if _leads_to(config, final)]
    return sorted(led, key=lambda config: len(_history(config)))


def configuration(image: Path) -> bytes | None:
    """The configuration of the image in this folder."""
    name = base64.b64encode(f"sha256:{image.name}".encode()).decode()
    try:
        return (image / f"={name}").read_bytes()
    except OSError:
        return None


def begins_with(layers: Sequence[Any], first: Sequence[Any]) -> bool:
    """Whether a list begins with another."""
    return tuple(layers[: len(first)]) == tuple(first)


def _leads_to(config: bytes, final: bytes) -> bool:
    """Whether one image's history is the beginning of another's."""
    try:
        layers, all_layers = diff_ids_of(config), diff_ids_of(final)
    except BadLayout:
        return False
    history, whole = _history(config), _history(final)
    return begins_with(all_layers, layers) and 0 < len(history) < len(whole) and begins_with(whole, history)


def _history(config: bytes) -> list[Any]:
    history = json.loads(config).get("history") or []
    return history if isinstance(history, list) else []
