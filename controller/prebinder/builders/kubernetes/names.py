"""Names and labels of build Jobs. Pure.

Requirements, property-tested:
- One image has one Job name, on any machine and in any version: whoever creates it a second time meets the first.
- Different images, and different instances, have different names (64 bits of SHA-256).
- Every name is a DNS-1123 label of at most 63 characters (Jobs put it into a label of their pods), whatever the image
  is called; a person can tell from it which repository and revision it is.
- Every label's value is valid (RFC 1123, at most 63 characters); what may be longer or freer is an annotation.
"""

from __future__ import annotations

import hashlib
import re

from prebinder.builders.base import BuildOrder
from prebinder.model.images import ImageName
from prebinder.model.spec import Repository

PREFIX = "prebinder/"
INSTANCE = PREFIX + "instance"
BUILD = PREFIX + "build"
ATTEMPT = PREFIX + "attempt"
REPOSITORY = PREFIX + "repository"
REVISION = PREFIX + "revision"
REF = PREFIX + "ref"
IMAGE = PREFIX + "image"

_LIMIT = 63
_HASH = 16
_REVISION = 8
_UNFIT = re.compile(r"[^a-z0-9]+")


def job_name(instance: str, image: ImageName) -> str:
    """The name of the Job that makes `image`."""
    digest = hashlib.sha256(f"{instance}\0{image}".encode()).hexdigest()[:_HASH]
    revision = _fit(image.tag)[:_REVISION].strip("-") or "x"
    room = _LIMIT - len(digest) - len(revision) - 2
    begin = f"{_fit(instance)[:20].strip('-')}-{_fit(image.name.rpartition('/')[2])}"
    return f"{begin[:room].strip('-')}-{revision}-{digest}".lstrip("-")


def repository_key(repository: Repository) -> str:
    """A label's value that tells repositories apart."""
    return hashlib.sha256(str(repository).encode()).hexdigest()[:_HASH]


def labels(instance: str, order: BuildOrder) -> dict[str, str]:
    """What Jobs and pods are found by. The `app.kubernetes.io` ones are what network policies select."""
    return {
        "app.kubernetes.io/part-of": "prebinder",
        "app.kubernetes.io/component": "build",
        "app.kubernetes.io/managed-by": "prebinder",
        INSTANCE: instance,
        BUILD: order.id,
        ATTEMPT: str(order.attempt),
        REPOSITORY: repository_key(order.repository),
        REVISION: order.revision[:_LIMIT],
    }


def notes(order: BuildOrder) -> dict[str, str]:
    """For people who look at a Job: which repository, ref and revision, and which image it makes."""
    return {
        REPOSITORY: str(order.repository),
        REF: order.ref,
        REVISION: order.revision,
        IMAGE: str(order.image),
    }


def selector(instance: str) -> str:
    """The label selector of all Jobs and pods of an instance."""
    return f"app.kubernetes.io/managed-by=prebinder,app.kubernetes.io/component=build,{INSTANCE}={instance}"


def _fit(text: str) -> str:
    return _UNFIT.sub("-", text.lower()).strip("-")
