"""Which revisions of a repository should have an image: pure decisions over refs.

The configuration's words (`branches`, `tags`, `build`) become a `Policy`; `wanted` turns a policy and what the host
showed into the revisions to build, in the order in which people will want them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from prebinder.model.catalogue import RefKind
from prebinder.model.spec import HEAD

_SPECIFIER = re.compile(r"\s*(?:==|!=|<=|>=|<|>|~=)")


class BuildRule(StrEnum):
    """`every-commit` builds each commit that a push brings, `newest` only where the ref then stands."""

    EVERY_COMMIT = "every-commit"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Ref:
    """A branch or tag as the host lists it; `revision` is the commit (a tag object is peeled)."""

    name: str
    kind: RefKind
    revision: str


@dataclass(frozen=True, slots=True)
class Refs:
    """All refs of a repository at one moment."""

    refs: tuple[Ref, ...]
    default_branch: str | None

    def head(self) -> str | None:
        return next((r.revision for r in self.refs if r.kind is RefKind.BRANCH and r.name == self.default_branch), None)


@dataclass(frozen=True, slots=True)
class Policy:
    """Patterns are shell-style (`teach/*`), `HEAD` is the default branch; a tag pattern may be a version
    specifier (`>=2.0`, PEP 440), which matches tags that are versions, with or without a leading `v`;
    `release` matches every tag that is a final version."""

    branches: tuple[str, ...] = (HEAD,)
    tags: tuple[str, ...] = ("release",)
    build: BuildRule = BuildRule.EVERY_COMMIT

    def wants(self, ref: Ref, default_branch: str | None) -> bool:
        if ref.kind is RefKind.BRANCH:
            return any(
                ref.name == default_branch if pattern == HEAD else fnmatchcase(ref.name, pattern)
                for pattern in self.branches
            )
        return any(_tag_matches(ref.name, pattern) for pattern in self.tags)


def wanted(policy: Policy, refs: Refs) -> tuple[Ref, ...]:
    """The refs whose revision should have an image: default branch first, then branches by name, then tags, newest
    version first."""
    chosen = [r for r in refs.refs if policy.wants(r, refs.default_branch)]
    branches = sorted(
        (r for r in chosen if r.kind is RefKind.BRANCH), key=lambda r: (r.name != refs.default_branch, r.name)
    )
    return (*branches, *newest_first(r for r in chosen if r.kind is RefKind.TAG))


def newest_first(tags: Iterable[Ref]) -> list[Ref]:
    """Tags that are versions by version, highest first; then the others by name."""
    return sorted(sorted(tags, key=lambda r: r.name), key=lambda r: _version(r.name) or Version("0.dev0"), reverse=True)


def check_tag_pattern(pattern: str) -> str:
    """Return the pattern, or raise ValueError when it looks like a version specifier but is none."""
    if _SPECIFIER.match(pattern):
        try:
            SpecifierSet(pattern)
        except InvalidSpecifier:
            raise ValueError(f"{pattern!r} is not a version specifier; write for example >=2.0,<3") from None
    return pattern


def _tag_matches(name: str, pattern: str) -> bool:
    version = _version(name)
    if pattern == "release":
        return version is not None and not version.is_prerelease
    if _SPECIFIER.match(pattern):
        return version is not None and SpecifierSet(pattern).contains(version)
    return fnmatchcase(name, pattern)


def _version(name: str) -> Version | None:
    try:
        return Version(name.removeprefix("v"))
    except InvalidVersion:
        return None
