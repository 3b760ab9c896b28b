"""Orders for builders, with everything that a test does not care about filled in."""

from __future__ import annotations

from typing import Any

from prebinder.builders.base import BuildOrder
from prebinder.model.images import ImageName
from prebinder.model.spec import github


def an_order(**changes: Any) -> BuildOrder:
    """An order for the commit `ab…` of github.com/ada/course, changed as told."""
    revision = changes.get("revision", "ab" * 20)
    order: dict[str, Any] = {
        "id": "0123456789ab",
        "repository": github("ada/course"),
        "clone_url": "https://github.com/ada/course",
        "revision": revision,
        "ref": "main",
        "image": ImageName("registry.example.org/binder/ada-course-0a1b2c", revision),
        "build_pack": "pip",
        "base_image": None,
        "push": True,
        "time_limit": 600.0,
        "memory_limit": 2 * 10**9,
        "log_limit": 10**6,
        "disk_limit": 5 * 10**9,
        "trusted": True,
    }
    return BuildOrder(**{**order, **changes})
