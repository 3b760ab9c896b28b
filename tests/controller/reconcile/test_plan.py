"""What a round decides to build, as tables over values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prebinder.config import RepositoryConfig
from prebinder.ledger import BuildEntry, RevisionMemory, Wish
from prebinder.ledger.records import RefMemory
from prebinder.model.catalogue import RefKind
from prebinder.model.events import BuildRecord, BuildState, Priority
from prebinder.model.failure import FailureKind
from prebinder.model.policy import BuildRule, Policy, Ref, Refs
from prebinder.reconcile.plan import Move, Plan, moved, plan, recipe
from tests.support.controller import configured

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)


def branch(name: str, revision: str) -> Ref:
    return Ref(name, RefKind.BRANCH, revision)


def tag(name: str, revision: str) -> Ref:
    return Ref(name, RefKind.TAG, revision)


def seen(revision: str, position: int = 0, **fields: Any) -> RevisionMemory:
    return RevisionMemory(revision, position, NOW, **fields)


def build(state: BuildState, failure: FailureKind | None = None, *, ago: float = 0, **fields: Any) -> BuildEntry:
    record = BuildRecord(
        id="1",
        repository="gh/a/b",
        ref="main",
        revision=A,
        image="x:y",
        state=state,
        priority=Priority.NORMAL,
        attempt=1,
        queued_at=NOW,
        finished_at=NOW - timedelta(seconds=ago) if state.finished else None,
        failure=failure,
    )
    return BuildEntry(record, **{"wish": Wish.TIP, "recipe": "r", **fields})


def planned(
    refs: tuple[Ref, ...],
    revisions: tuple[RevisionMemory, ...] = (),
    builds: dict[str, BuildEntry] | None = None,
    *,
    policy: Policy | None = None,
    commits: int = 50,
    **rest: Any,
) -> Plan:
    return plan(
        policy or Policy(),
        Priority.NORMAL,
        Refs(refs, "main"),
        {m.revision: m for m in revisions},
        builds or {},
        settings="r",
        commits=commits,
        pause=600,
        now=NOW,
        **rest,
    )


def test_tips_come_first_the_default_branch_before_the_others_and_releases_last() -> None:
    policy = Policy(branches=("HEAD", "teach"), tags=("release",))
    refs = (tag("v1.0", C), branch("teach", B), branch("main", A), tag("v2.0", D), tag("nightly", "e" * 40))
    got = planned(refs, policy=policy)
    assert [(p.revision, p.ref, p.wish) for p in got.builds] == [
        (A, "main", Wish.TIP),
        (B, "teach", Wish.TIP),
        (D, "v2.0", Wish.TIP),
        (C, "v1.0", Wish.TIP),
    ]


def test_a_revision_at_which_several_refs_stand_is_built_once() -> None:
    got = planned((branch("main", A), tag("v1.0", A)))
    assert [(p.revision, p.ref) for p in got.builds] == [(A, "main")]


def test_commits_in_between_are_built_last_newest_first_and_not_more_than_the_limit() -> None:
    between = tuple(seen(f"{n:040x}", n, via="main") for n in range(1, 8))
    got = planned((branch("main", A),), between, commits=3)
    assert [p.revision for p in got.builds] == [A, f"{7:040x}", f"{6:040x}", f"{5:040x}"]
    assert {(p.wish, p.priority) for p in got.builds[1:]} == {(Wish.COMMIT, Priority.LOW)}


def test_commits_in_between_are_not_built_with_newest_nor_twice() -> None:
    between = (seen(B, 1, via="main"), seen(C, 2, via="main"))
    newest = Policy(build=BuildRule.NEWEST)
    assert [p.revision for p in planned((branch("main", A),), between, policy=newest).builds] == [A]
    once = planned((branch("main", A),), between, {B: build(BuildState.READY)})
    assert [p.revision for p in once.builds] == [A, C], "an image deleted later is built by a click"


def test_what_is_there_or_cannot_be_looked_for_is_left_alone() -> None:
    assert planned((branch("main", A),), (seen(A, image="x"),)).builds == ()
    assert planned((branch("main", A),), unknown={A}).builds == ()


@pytest.mark.parametrize(
    ("last", "again"),
    [
        (build(BuildState.QUEUED), False),
        (build(BuildState.RUNNING), False),
        (build(BuildState.READY), True),  # it is gone from the store
        (build(BuildState.CANCELLED, FailureKind.CANCELLED), False),
        (build(BuildState.CANCELLED, FailureKind.CANCELLED, superseded=True), True),
        (build(BuildState.FAILED, FailureKind.REPOSITORY, ago=10**6), False),
        (build(BuildState.FAILED, FailureKind.REPOSITORY, recipe="older settings"), True),
        (build(BuildState.FAILED, FailureKind.ENGINE, ago=599), False),
        (build(BuildState.FAILED, FailureKind.ENGINE, ago=600), True),
    ],
)
def test_what_follows_from_the_newest_build(last: BuildEntry, again: bool) -> None:
    assert bool(planned((branch("main", A),), (seen(A),), {A: last}).builds) is again


def test_the_pause_after_failures_of_the_surroundings_doubles_to_at_most_a_day() -> None:
    def again(failures: int, ago: float) -> bool:
        last = build(BuildState.FAILED, FailureKind.REGISTRY, ago=ago)
        return bool(planned((branch("main", A),), (seen(A),), {A: last}, failures={A: failures}).builds)

    assert [again(2, 1199), again(2, 1200)] == [False, True]
    assert [again(1000, 86399), again(1000, 86400)] == [False, True]


def test_only_newest_supersedes_and_never_what_a_person_asked_for() -> None:
    refs, newest = (branch("main", B),), Policy(build=BuildRule.NEWEST)
    waits = {A: build(BuildState.QUEUED)}
    assert planned(refs, builds=waits, policy=newest).superseded == ("1",)
    assert planned(refs, builds=waits).superseded == ()
    assert planned(refs, builds={A: build(BuildState.RUNNING, wish=Wish.PERSON)}, policy=newest).superseded == ()
    assert planned(refs, builds={A: build(BuildState.READY)}, policy=newest).superseded == ()
    assert planned((branch("main", A),), builds=waits, policy=newest).superseded == ()


def test_a_ref_has_moved_until_its_commits_were_asked_for() -> None:
    refs = Refs((branch("main", B), branch("draft", C), tag("v1", C)), "main")
    before = (RefMemory(RefKind.BRANCH, "main", B, A), RefMemory(RefKind.TAG, "v1", C, C))
    assert moved(Policy(), before, refs) == (Move(branch("main", B), A),)
    assert moved(Policy(), (), refs) == (Move(branch("main", B), None), Move(tag("v1", C), None))


def test_the_recipe_changes_with_what_the_outcome_depends_on_alone() -> None:
    course = RepositoryConfig(git="https://example.org/course.git")
    pip = RepositoryConfig(git="https://example.org/course.git", build_pack="pip")
    titled = RepositoryConfig(git="https://example.org/course.git", title="Course", priority="high")
    plain = configured([])
    assert recipe(plain, course) == recipe(plain, titled) == recipe(plain, None)
    assert recipe(plain, course) == recipe(configured([], site={"title": "Other"}), course)
    others = {
        recipe(plain, pip),
        recipe(configured([], limits={"memory": "8G"}), course),
        recipe(configured([], limits={"time": "2h"}), course),
        recipe(configured([], builder={"base_image": "debian"}), course),
    }
    assert len(others | {recipe(plain, course)}) == 5
