"""Catalogues for the site's tests: an ordinary one, and one in which every text is hostile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prebinder.model.catalogue import (
    BuildSummary,
    Catalogue,
    ImageState,
    RefEntry,
    RefKind,
    RepositoryEntry,
    RevisionEntry,
)
from prebinder.model.events import BuildState
from prebinder.model.failure import FailureKind

NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*191 }}&amp;\u202e"


def revision(number: int) -> str:
    return f"{number:040x}"


def entry(number: int, state: ImageState, summary: str = "A commit", **more: object) -> RevisionEntry:
    values = {"since": NOW - timedelta(minutes=number), "summary": summary, **more}
    return RevisionEntry(revision=revision(number), state=state, **values)  # type: ignore[arg-type]


def branch(name: str, number: int) -> RefEntry:
    return RefEntry(name=name, kind=RefKind.BRANCH, revision=revision(number))


def tag(name: str, number: int) -> RefEntry:
    return RefEntry(name=name, kind=RefKind.TAG, revision=revision(number))


def repository(name: str = "ann/course", **more: object) -> RepositoryEntry:
    values: dict[str, object] = {
        "repository": f"gh/{name}",
        "provider": "gh",
        "name": name,
        "title": "The course",
        "url": f"https://github.com/{name}",
        "default_branch": "main",
        "looked_at": NOW,
        "refs": (branch("main", 1), branch("teach/week-2", 2), tag("v1.0", 3), branch("wip", 4), tag("v0.1", 5)),
        "revisions": (
            entry(1, ImageState.READY, "Newest", build="b1"),
            entry(2, ImageState.BUILDING, "Week 2", build="b2"),
            entry(3, ImageState.QUEUED, "Release"),
            entry(
                4, ImageState.FAILED, "Broken", build="b4", failure=FailureKind.REPOSITORY, message="No such package."
            ),
            entry(5, ImageState.ABSENT, "Old"),
        ),
        **more,
    }
    return RepositoryEntry(**values)  # type: ignore[arg-type]


def catalogue(*repositories: RepositoryEntry, **more: object) -> Catalogue:
    values: dict[str, object] = {
        "version": "1",
        "published_at": NOW,
        "on_demand": "registered",
        "image_prefix": "localhost/",
        "repositories": repositories or (repository(),),
        "recent_builds": (
            BuildSummary(
                id="b4",
                repository="gh/ann/course",
                ref="wip",
                revision=revision(4),
                state=BuildState.FAILED,
                at=NOW,
                seconds=83.0,
                failure=FailureKind.REPOSITORY,
            ),
        ),
        **more,
    }
    return Catalogue(**values)  # type: ignore[arg-type]


def hostile() -> Catalogue:
    """Every text that somebody else writes tries to be markup or an address that runs."""
    ref = "\"'><script>alert(3)</script>&amp;%2e%2e/x"
    return catalogue(
        repository(
            title=HOSTILE,
            description=HOSTILE,
            url="javascript:alert(4)",
            problem=HOSTILE,
            urlpath=HOSTILE,
            default_branch=ref,
            refs=(branch(ref, 1), tag("../../../../etc/passwd", 1), tag("@" + "!" * 250, 1)),
            revisions=(
                entry(
                    1, ImageState.FAILED, HOSTILE, build="../../x?\"'", failure=FailureKind.REPOSITORY, message=HOSTILE
                ),
            ),
        ),
        RepositoryEntry(
            repository="git/x",
            provider="git",
            name="https://git.example.org/../../../../escape.git",
            title="Paths",
            url="http://user:pw@[::bad",
        ),
        configuration_problem=HOSTILE,
        recent_builds=(
            BuildSummary(
                id=HOSTILE, repository=HOSTILE, ref=HOSTILE, revision=revision(1), state=BuildState.RUNNING, at=NOW
            ),
        ),
    )
