"""Git hosts that are away, slow, or ask for a pause; webhooks that repeat, lie, or tell too little."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from prebinder.config import Configuration
from prebinder.hosts.base import Host
from prebinder.model.failure import HostUnavailable, RefNotFound, RefusedError, SpecError, WebhookRejected
from prebinder.model.messages import BuildRequest
from prebinder.model.spec import Provider, Repository, git_url, github
from prebinder.reconcile import HookClosed
from tests.support.controller import Running, configured, started, until
from tests.support.memory_host import MemoryHost, commit_id

Hosts = Mapping[Provider, Host]
SIGNED = {"x-signed": "yes"}


@pytest.fixture
def hooked(course: Repository, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    return with_hooks([course], monkeypatch)


def with_hooks(repositories: list[Repository], monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Configuration:
    monkeypatch.setenv("WEBHOOK_SECRET", "kept")
    hosts = {"git": {"webhook_secret": {"env": "WEBHOOK_SECRET"}}}
    return configured([{"git": r.name} for r in repositories], hosts=hosts, **sections)


def request(repository: Repository, ref: str = "main") -> BuildRequest:
    return BuildRequest(provider="git", spec=f"{quote(repository.name, safe='')}/{ref}")


async def tell(it: Running, host: MemoryHost, course: Repository, **said: Any) -> int:
    return await it.controller.webhook("git", SIGNED, host.changed(course, **said))


async def settled(it: Running) -> None:
    """The first round is over."""
    await until(lambda: all(e.looked_at for e in it.catalogue.repositories))
    await until(lambda: all(r.summary for e in it.catalogue.repositories for r in e.revisions))


async def test_a_webhook_that_names_the_commit_builds_before_the_host_is_asked_anything(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        await settled(it)
        host.gate = asyncio.Event()  # the host does not answer
        pushed = host.push(course, "Second")
        assert await tell(it, host, course, revision=pushed) == 1
        await until(lambda: it.is_state(pushed, "ready"))
        assert it.entry().revision_of("main") == pushed
        host.gate.set()


async def test_an_answer_older_than_a_webhook_does_not_move_the_branch_back(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        await settled(it)
        older = host.head(course)
        host.gate = asyncio.Event()
        it.controller.configuration_changed()  # a round asks, and is answered from before the push
        await until(lambda: host.questions[-1] == "refs")
        pushed = host.push(course, "Second")
        seen: list[str | None] = []

        async def watch() -> None:
            seen.extend([c.repositories[0].revision_of("main") async for c in it.controller.catalogue_changes()])

        watching = asyncio.create_task(watch())
        await tell(it, host, course, revision=pushed)
        await until(lambda: it.is_state(pushed, "ready"))
        host.gate.set()
        await until(lambda: host.questions.count("refs") >= 3)
        await until(lambda: (e := it.state(pushed)) and e.summary)
    await asyncio.wait_for(watching, 10)
    assert seen[seen.index(pushed) :].count(older) == 0


async def test_a_webhook_without_a_commit_or_for_a_new_branch_makes_a_round(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = with_hooks([course], monkeypatch)
    async with started(tmp_path, configuration, hosts) as it:
        await settled(it)
        pushed = host.push(course, "Second")
        await tell(it, host, course)
        await until(lambda: it.is_state(pushed, "ready"))
        side = host.push(course, "Aside", branch="side")
        await tell(it, host, course, ref="side", revision=side)
        await until(lambda: it.entry().revision_of("side") == side)
        assert it.is_state(side, "absent"), "the policy does not want it"


async def test_a_webhook_that_names_a_commit_which_is_not_there_is_set_right_by_the_round(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        await settled(it)
        await tell(it, host, course, revision=commit_id("never pushed"))
        await until(lambda: host.questions.count("refs") >= 2)
        await until(lambda: it.entry().revision_of("main") == host.head(course))


async def test_a_repeated_delivery_counts_once(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        pushed = host.push(course, "Second")
        assert await tell(it, host, course, revision=pushed, delivery="one") == 1
        assert await tell(it, host, course, revision=pushed, delivery="one") == 0
        assert await tell(it, host, course, revision=pushed, delivery="two") == 1


async def test_webhooks_are_refused_unless_signed_open_and_known(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    body = host.changed(course)
    async with started(tmp_path, hooked, hosts) as it:
        with pytest.raises(WebhookRejected):
            await it.controller.webhook("git", {}, body)
        with pytest.raises(HookClosed, match=r"hosts\.github\.webhook_secret"):
            await it.controller.webhook("github", SIGNED, body)
        with pytest.raises(HookClosed, match="Known are: github, git"):
            await it.controller.webhook("bitbucket", SIGNED, body)
        stranger = git_url("https://memory.invalid/stranger")
        host.push(stranger, "Not registered")
        assert await it.controller.webhook("git", SIGNED, host.changed(stranger)) == 0


async def test_a_repository_is_fed_by_webhooks_until_a_look_finds_what_none_told(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = with_hooks([course], monkeypatch, polling={"interval": 1})
    async with started(tmp_path, configuration, hosts) as it:
        await settled(it)
        assert not it.entry().fed_by_webhook
        pushed = host.push(course, "Second")
        await tell(it, host, course, revision=pushed)
        await until(lambda: it.entry().fed_by_webhook)
        missed = host.push(course, "Third, and no webhook")
        await until(lambda: it.entry().revision_of("main") == missed)
        await until(lambda: not it.entry().fed_by_webhook)


async def test_a_host_that_is_away_is_asked_again_soon_and_what_is_known_stays(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        await settled(it)
        await until(lambda: it.is_state(host.head(course), "ready"))
        host.away = HostUnavailable("The host did not answer within 20 s.")
        await tell(it, host, course)
        await until(lambda: it.entry().problem)
        assert it.entry().problem == "The host did not answer within 20 s."
        assert it.entry().revision_of("main") == host.head(course)
        reply = await it.controller.request_build(request(course))
        assert reply.launchable, "the last revision that it told us"
        host.away = None
        await until(lambda: it.entry().problem is None)


async def test_a_pause_that_a_host_asks_for_holds_for_all_its_repositories(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = git_url("https://memory.invalid/other")
    host.push(other, "First")
    configuration = with_hooks([course, other], monkeypatch)
    async with started(tmp_path, configuration, hosts) as it:
        await settled(it)
        host.away = HostUnavailable("Rate limit.", retry_after=3600)
        await tell(it, host, course)
        await until(lambda: it.catalogue.repositories[0].problem)
        asked = host.questions.count("refs")
        await tell(it, host, other)
        hour = timedelta(minutes=59)
        status = await it.controller.status()
        begin = status.started_at
        await until(
            lambda: all((n := it.controller._schedule.next_at(str(r))) and n > begin + hour for r in (course, other))
        )
        assert host.questions.count("refs") == asked


async def test_a_pause_for_one_question_holds_for_that_question_alone(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = git_url("https://memory.invalid/other")
    host.push(other, "First")
    configuration = with_hooks([course, other], monkeypatch, polling={"interval": 1})
    async with started(tmp_path, configuration, hosts) as it:
        await settled(it)
        host.history_away = HostUnavailable("Rate limit.", retry_after=3600)
        between, first = host.push(course, "Between"), host.push(course, "First of the quota's end")
        await tell(it, host, course)
        await until(lambda: it.entry(course).problem == "Rate limit.")
        asked = host.questions.count("commits")
        pushed = [first, host.push(course, "Second"), host.push(other, "Second")]
        await until(lambda: all(it.is_state(revision, "ready") for revision in pushed))
        assert it.state(between) is None, "its commits are not known yet"
        assert host.questions.count("commits") == asked
        assert it.entry(course).problem == "Rate limit.", "it still holds"


async def test_commits_that_could_not_be_asked_for_are_built_later(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    async with started(tmp_path, hooked, hosts) as it:
        await settled(it)
        host.history_away = HostUnavailable("No history now.")
        between = host.push(course, "Between")
        tip = host.push(course, "Tip")
        await tell(it, host, course, revision=tip)
        await until(lambda: it.is_state(tip, "ready") and it.entry().problem)
        host.history_away = None
        await until(lambda: it.is_state(between, "ready"))


async def test_a_request_is_refused_before_anyone_is_asked(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    stranger = git_url("https://memory.invalid/stranger")
    host.push(stranger, "First")
    async with started(tmp_path, [{"git": course.name}], hosts) as it:
        await settled(it)
        host.questions.clear()
        with pytest.raises(RefusedError, match="not registered"):
            await it.controller.request_build(request(stranger))
        with pytest.raises(SpecError):
            await it.controller.request_build(BuildRequest(provider="git", spec="no/such"))
        with pytest.raises(SpecError):
            await it.controller.request_build(BuildRequest(provider="nowhere", spec="a/b/c"))
        assert host.questions == []
        with pytest.raises(RefNotFound):
            await it.controller.request_build(request(course, "no-such-branch"))


async def test_on_demand_anyone_builds_strangers_and_none_builds_nothing_new(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    stranger = git_url("https://memory.invalid/stranger")
    host.push(stranger, "First")
    async with started(tmp_path / "a", configured([], on_demand="anyone"), hosts) as it:
        reply = await it.controller.request_build(request(stranger))
        assert reply.build is not None
        await it.ended(reply.build.id)
        assert (await it.controller.request_build(request(stranger))).launchable
        assert it.catalogue.repositories == ()
    async with started(tmp_path / "b", configured([{"git": course.name}], on_demand="none"), hosts) as it:
        await until(lambda: it.is_state(host.head(course), "ready"))
        assert (await it.controller.request_build(request(course))).launchable
        host.push(course, "Aside", branch="aside")
        with pytest.raises(RefusedError, match="nothing is built on demand"):
            await it.controller.request_build(request(course, "aside"))


async def test_repositories_come_and_go_with_the_configuration(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts
) -> None:
    other = git_url("https://memory.invalid/other")
    host.push(other, "First")
    async with started(tmp_path, [{"git": course.name}], hosts) as it:
        await settled(it)
        await until(lambda: it.is_state(host.head(course), "ready"))
        it.builder.hold_all = True
        it.live.current = configured([{"git": other.name, "title": "The other"}])
        it.controller.configuration_changed()
        await until(lambda: it.builder.revisions[-1:] == [host.head(other)])
        assert [e.title for e in it.catalogue.repositories] == ["The other"]
        it.live.current = configured([{"git": course.name}])
        it.controller.configuration_changed()
        await until(lambda: it.builder.ended == [host.head(other)])
        await until(lambda: it.entry().revision_of("main") == host.head(course))
        it.live.problem = "prebinder.yaml:3: unknown key."
        it.controller.configuration_changed()
        assert it.catalogue.configuration_problem == "prebinder.yaml:3: unknown key."


async def test_the_states_of_builds_are_written_to_the_commit_when_configured(
    tmp_path: Path, host: MemoryHost, hosts: Hosts
) -> None:
    repository = github("owner/course")
    head = host.push(repository, "First")
    sections = {"hosts": {"github": {"report_status": True}}, "site": {"url": "https://binder.example.org"}}
    async with started(tmp_path, configured([{"github": "owner/course"}], **sections), hosts):
        await until(lambda: len(host.statuses) >= 2 and host.statuses[-1][1] == "success")
        assert host.statuses[0] == (head, "pending", f"https://binder.example.org/v2/gh/owner/course/{head}")
        assert [s[1] for s in host.statuses].count("success") == 1


async def test_the_states_of_a_commit_are_written_in_order_and_those_that_were_overtaken_not_at_all(
    tmp_path: Path, host: MemoryHost, hosts: Hosts
) -> None:
    repository = github("owner/course")
    head = host.push(repository, "First")
    host.status_gate = asyncio.Event()  # the first "pending" is slow
    configuration = configured([{"github": "owner/course"}], hosts={"github": {"report_status": True}})
    async with started(tmp_path, configuration, hosts) as it:
        it.builder.hold_all = True
        await until(lambda: it.builder.revisions == [head])
        (build,) = await it.controller.builds()
        await it.controller.cancel(build.id)
        await it.ended(build.id)
        again = BuildRequest(provider="gh", spec=f"owner/course/{head}", rebuild=True)
        await it.controller.request_build(again)
        await until(lambda: it.builder.revisions == [head, head])
        it.builder.release()
        await until(lambda: it.is_state(head, "ready"))
        host.status_gate.set()
        await until(lambda: (head, "success", None) in host.statuses)
    assert host.statuses == [(head, "pending", None), (head, "success", None)]


async def test_each_version_of_the_catalogue_is_new_and_sorts_after_the_one_before(
    tmp_path: Path, course: Repository, host: MemoryHost, hosts: Hosts, hooked: Configuration
) -> None:
    versions: list[str] = []
    async with started(tmp_path, hooked, hosts) as it:

        async def watch() -> None:
            versions.extend([c.version async for c in it.controller.catalogue_changes()])

        watching = asyncio.create_task(watch())
        await settled(it)
        await tell(it, host, course, revision=host.push(course, "Second"))
        await until(lambda: it.is_state(host.head(course), "ready"))
        await settled(it)
        same = it.catalogue.version
        it.controller._publisher.changed()
        assert it.catalogue.version == same, "nothing changed, so nothing is new"
    await asyncio.wait_for(watching, 10)  # ends when the controller stops
    assert versions == sorted(set(versions))
    async with started(tmp_path, hooked, hosts) as it:
        assert it.catalogue.version > versions[-1]
