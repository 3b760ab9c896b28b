"""What a click on a link meets, answered from the catalogue alone; kinds of failure."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from prebinder.model.catalogue import Catalogue, ImageState, RefEntry, RefKind, RepositoryEntry, RevisionEntry
from prebinder.model.events import BuildState, Phase, Priority
from prebinder.model.failure import BuildFailed, Disposition, Failure, FailureKind
from prebinder.model.spec import Repository, Spec, git_url, github

NOW = datetime(2026, 11, 23, tzinfo=UTC)
A, B, C = "a" * 40, "b" * 40, "c" * 40


def entry(repository: Repository, default: str | None = "trunk") -> RepositoryEntry:
    return RepositoryEntry(
        repository=str(repository),
        provider=repository.provider,
        name=repository.name,
        title="Course",
        url="https://example.org",
        default_branch=default,
        refs=(
            RefEntry(name="v1", kind=RefKind.TAG, revision=C),
            RefEntry(name="trunk", kind=RefKind.BRANCH, revision=A),
            RefEntry(name="v1", kind=RefKind.BRANCH, revision=B),
        ),
        revisions=tuple(RevisionEntry(revision=r, state=ImageState.READY, since=NOW) for r in (A, B)),
    )


@pytest.mark.parametrize(
    ("ref", "revision"),
    [
        ("HEAD", A),
        ("trunk", A),
        ("main", A),
        ("master", A),
        ("v1", B),  # branches win over tags
        ("nothing", None),
        (C, C),
        ("d" * 40, "d" * 40),
    ],
)
def test_what_a_ref_means(ref: str, revision: str | None) -> None:
    assert entry(github("a/b")).revision_of(ref) == revision


def test_without_a_default_branch_head_means_nothing() -> None:
    assert entry(github("a/b"), None).revision_of("HEAD") is None
    assert entry(github("a/b"), None).revision_of("main") is None


def test_a_link_is_resolved_from_memory_and_github_ignores_case() -> None:
    url = git_url("https://example.org/Course")
    catalogue = Catalogue(
        version="1",
        published_at=NOW,
        on_demand="none",
        image_prefix="x/",
        repositories=(entry(github("Owner/Course")), entry(url)),
    )
    assert catalogue.resolve(Spec(github("owner/COURSE"), "HEAD")) == RevisionEntry(
        revision=A, state=ImageState.READY, since=NOW
    )
    assert catalogue.find(url)
    assert catalogue.find(git_url("https://example.org/course")) is None
    assert catalogue.resolve(Spec(github("owner/course"), C)) is None, (
        "known as a tag, but nothing is known of its image"
    )
    assert catalogue.resolve(Spec(github("no/body"), "HEAD")) is None
    assert Catalogue.model_validate_json(catalogue.model_dump_json()) == catalogue


def test_each_kind_of_failure_has_words_and_a_disposition() -> None:
    for kind in FailureKind:
        assert kind.heading
        assert not kind.heading.endswith(".")
        assert kind.advice.endswith(".")
        assert kind.disposition in Disposition
    assert FailureKind.REPOSITORY.disposition is Disposition.STALLED
    assert FailureKind.ENGINE.disposition is Disposition.RETRY
    assert FailureKind.CANCELLED.disposition is Disposition.FINAL
    failed = BuildFailed(Failure(FailureKind.MEMORY, "Too large."))
    assert failed.failure() == Failure(FailureKind.MEMORY, "Too large.")


def test_a_person_comes_first_and_phases_are_binderhubs() -> None:
    assert min(Priority, key=lambda p: p.rank) is Priority.PERSON
    assert [p.value for p in Phase] == [
        "waiting", "fetching", "building", "pushing", "built", "launching", "ready", "failed", "unknown",
    ]  # fmt: skip
    assert {s for s in BuildState if not s.finished} == {BuildState.QUEUED, BuildState.RUNNING}
