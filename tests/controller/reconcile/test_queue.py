"""The order of waiting builds, for any of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.model.events import Priority
from prebinder.reconcile.queue import BuildQueue, Waiting

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
priorities = st.sampled_from(list(Priority))
pauses = st.one_of(st.none(), st.integers(-60, 60).map(lambda s: NOW + timedelta(seconds=s)))
waiting = st.lists(st.tuples(st.sampled_from("abcd"), priorities, pauses), max_size=40).map(
    lambda items: [Waiting(f"{n}", *item) for n, item in enumerate(items)]
)


def filled(items: list[Waiting]) -> BuildQueue:
    queue = BuildQueue()
    for item in items:
        queue.add(item)
    return queue


def drained(queue: BuildQueue, now: datetime = NOW) -> list[str]:
    taken = []
    while (build := queue.take(now)) is not None:
        taken.append(build)
    return taken


@given(waiting)
def test_everything_that_may_run_is_taken_once_and_what_pauses_stays(items: list[Waiting]) -> None:
    queue = filled(items)
    may = {i.id for i in items if i.not_before is None or i.not_before <= NOW}
    taken = drained(queue)
    assert sorted(taken) == sorted(may)
    assert len(queue) == len(items) - len(may)
    rest = [i.not_before for i in items if i.id not in may and i.not_before]
    assert queue.next_at(NOW) == min(rest, default=None)


@given(waiting)
def test_a_better_priority_is_always_taken_first(items: list[Waiting]) -> None:
    by_id = {i.id: i for i in items}
    ranks = [by_id[build].priority.rank for build in drained(filled(items))]
    assert ranks == sorted(ranks)


@given(waiting)
def test_within_a_repository_and_priority_first_come_is_first_served(items: list[Waiting]) -> None:
    by_id = {i.id: i for i in items}
    lines: dict[tuple[str, Priority], list[int]] = {}
    for build in drained(filled(items)):
        lines.setdefault((by_id[build].repository, by_id[build].priority), []).append(int(build))
    assert all(line == sorted(line) for line in lines.values())


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=2))
def test_repositories_take_turns(counts: dict[str, int]) -> None:
    items = [Waiting(f"{name}{n}", name, Priority.NORMAL) for name, count in counts.items() for n in range(count)]
    taken = drained(filled(items))
    # While a repository waits, no other is served twice in between.
    for name, count in counts.items():
        places = [place for place, build in enumerate(taken) if build[0] == name][:count]
        for first, second in zip([-1, *places], places, strict=False):
            between = [build[0] for build in taken[first + 1 : second]]
            assert all(between.count(other) <= 1 for other in between)


@given(waiting)
def test_the_shown_order_begins_with_what_is_taken_next(items: list[Waiting]) -> None:
    queue = filled(items)
    order = queue.order(NOW)
    assert queue.take(NOW) == (order[0] if order else None)


def test_a_big_push_does_not_starve_a_repository_that_comes_later() -> None:
    queue = filled([Waiting(f"big{n}", "big", Priority.NORMAL) for n in range(50)])
    assert queue.take(NOW) == "big0"
    queue.add(Waiting("small", "small", Priority.NORMAL))
    assert queue.take(NOW) == "small"
    assert queue.take(NOW) == "big1"


def test_a_person_moves_a_build_to_the_front_and_ends_its_pause() -> None:
    later = NOW + timedelta(hours=1)
    queue = filled([Waiting("a", "x", Priority.HIGH), Waiting("b", "y", Priority.LOW, later)])
    queue.raise_priority("b", Priority.NORMAL)
    assert queue.order(NOW) == ["a"]
    queue.raise_priority("b", Priority.PERSON)
    assert queue.order(NOW) == ["b", "a"]
    queue.raise_priority("b", Priority.LOW)
    assert queue.take(NOW) == "b", "never made worse"
    queue.raise_priority("gone", Priority.PERSON)


def test_a_build_waits_once_and_can_be_taken_out() -> None:
    queue = filled([Waiting("a", "x", Priority.HIGH)])
    with pytest.raises(ValueError, match="waits already"):
        queue.add(Waiting("a", "x", Priority.LOW))
    assert "a" in queue
    assert queue.remove("a")
    assert not queue.remove("a")
    assert queue.take(NOW) is None
