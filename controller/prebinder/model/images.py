"""Image names: deterministic from prefix, repository and revision, and equal to BinderHub's.

Requirements, property-tested:
- The same repository and revision always give the same name, on any machine and in any version.
- Different build slugs give different names (six hex digits of SHA-256 tell apart what escaping or cutting merges).
- Whatever the slug, prefix and name together fit 255 characters and hold only what the OCI distribution
  specification allows in a repository name.

The rule is BinderHub's (`binderhub/builder.py`: `_safe_build_slug`), so that a registry that BinderHub filled keeps
serving.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass

import escapism

from prebinder.model.spec import Repository

_SAFE = frozenset(string.ascii_letters + string.digits)
_HASH_DIGITS = 6
_LIMIT = 255


@dataclass(frozen=True, slots=True)
class ImageName:
    """A tagged reference. `name` is registry and path, `tag` the revision."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that exists: its reference and its digest (`sha256:…`)."""

    name: ImageName
    digest: str

    @property
    def by_digest(self) -> str:
        return f"{self.name.name}@{self.digest}"


def image_name(prefix: str, repository: Repository, revision: str) -> ImageName:
    """The name of the image of `revision`; `prefix` is registry, path and the beginning of the name."""
    slug = repository.build_slug
    digest = hashlib.sha256(slug.encode()).hexdigest()[:_HASH_DIGITS]
    escaped = escapism.escape(slug, safe=_SAFE, escape_char="-")
    room = _LIMIT - len(prefix) - _HASH_DIGITS - 1
    name = f"{prefix}{escaped[:room]}-{digest}".replace("_", "-").lower()
    return ImageName(name, revision.lower())
