"""From a push to a ready image: rounds over real Git repositories served over HTTP."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from prebinder.config.models import SecretRef
from prebinder.hosts.base import Host
from prebinder.hosts.git import GitHost
from prebinder.model.failure import FailureKind
from prebinder.model.spec import Provider
from tests.support.controller import Running, configured, started, until
from tests.support.git_server import GitRepository, GitServer
from tests.support.scripted_builder import Shelf

SECRET = "a secret of this test alone"


@pytest.fixture
def secret(tmp_path: Path) -> SecretRef:
    path = tmp_path / "webhook-secret"
    path.write_text(SecretStr(SECRET).get_secret_value())
    return SecretRef(file=path)


@pytest.fixture
def hosts(tmp_path: Path, secret: SecretRef) -> dict[Provider, Host]:
    return {Provider.GIT: GitHost(tmp_path / "cache", webhook_secret=secret)}


async def tell(it: Running, course: GitRepository, revision: str, ref: str = "refs/heads/main") -> int:
    """What a Git server's hook does after a push."""
    body = json.dumps({"repository": course.url, "ref": ref, "after": revision}).encode()
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return await it.controller.webhook("git", {"x-prebinder-signature-256": signature}, body)


async def test_a_registered_repository_is_built_where_its_default_branch_stands(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    course = git_server.create("course")
    course.branch("draft")
    async with started(tmp_path, [{"git": course.url}], hosts) as it:
        head = course.head()
        await until(lambda: it.is_state(head, "ready"))
        entry = await until(lambda: (e := it.state(head)) and e.summary and e)
        assert entry.image == it.images.held[str(it.image(course.repository, head))]
        assert entry.summary == "First"
        assert it.builder.orders[0].clone_url == course.url
        assert it.entry().revision_of("HEAD") == it.entry().revision_of("main") == head
        assert {ref.name for ref in it.entry().refs} == {"main", "draft"}


async def test_release_tags_and_matching_branches_are_built_and_others_are_not(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    course = git_server.create("course")
    release = course.head()
    course.tag("v1.0", annotated=True)
    teach = course.push({"a": "1"}, branch="teach/one")
    draft = course.push({"a": "2"}, branch="draft")
    registered = [{"git": course.url, "branches": "teach/*"}]
    async with started(tmp_path, registered, hosts) as it:
        await until(lambda: it.is_state(release, "ready") and it.is_state(teach, "ready"))
        assert sorted(it.builder.revisions) == sorted([release, teach])
        assert it.is_state(draft, "absent")


async def test_a_push_is_being_built_within_a_second_of_its_webhook(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host], secret: SecretRef
) -> None:
    course = git_server.create("course")
    configuration = configured([{"git": course.url}], hosts={"git": {"webhook_secret": secret.model_dump()}})
    async with started(tmp_path, configuration, hosts) as it:
        await until(lambda: it.is_state(course.head(), "ready"))
        pushed = course.push({"a": "1"}, "Second")
        it.builder.hold(pushed)
        begin = time.monotonic()
        assert await tell(it, course, pushed) == 1
        await until(lambda: it.builder.revisions[-1] == pushed)
        assert time.monotonic() - begin < 1.0
        assert it.is_state(pushed, "building")
        it.builder.release()
        await until(lambda: it.is_state(pushed, "ready"))
        await until(lambda: (e := it.state(pushed)) and e.summary == "Second")


async def test_every_commit_of_a_push_is_built_the_newest_first(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host], secret: SecretRef
) -> None:
    course = git_server.create("course")
    sections = {"hosts": {"git": {"webhook_secret": secret.model_dump()}}, "limits": {"parallel": 1, "commits": 3}}
    async with started(tmp_path, configured([{"git": course.url}], **sections), hosts) as it:
        first = course.head()
        await until(lambda: it.is_state(first, "ready"))
        await until(lambda: (e := it.state(first)) and e.summary)
        commits = [course.commit({"a": str(n)}, f"Change {n}") for n in range(5)]
        tip = course.push({"a": "tip"}, "Tip")
        await tell(it, course, tip)
        await until(lambda: len(it.builder.revisions) == 4)
        # Of six commits three are built: the tip and the two before it.
        await until(lambda: it.is_state(commits[3], "ready"))
        assert it.builder.revisions[:2] == [first, tip]
        assert it.builder.revisions[2:] == [commits[4], commits[3]]
        shown = [entry.revision for entry in it.entry().revisions]
        assert shown == [tip, commits[4], commits[3], first]


async def test_a_branch_that_moved_while_nobody_watched_is_caught_up(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    course = git_server.create("course")
    images = Shelf()
    async with started(tmp_path, [{"git": course.url}], hosts, images=images) as it:
        await until(lambda: (e := it.state(course.head())) and e.summary and e.image)
    between = course.push({"a": "1"}, "While away")
    tip = course.push({"a": "2"}, "And again")
    async with started(tmp_path, [{"git": course.url}], hosts, images=images) as it:
        await until(lambda: it.is_state(tip, "ready") and it.is_state(between, "ready"))
        assert it.builder.revisions == [tip, between]


async def test_images_that_exist_are_never_built_again_also_when_the_ledger_is_lost(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    course = git_server.create("course")
    images = Shelf()
    async with started(tmp_path / "one", [{"git": course.url}], hosts, images=images) as it:
        await until(lambda: it.is_state(course.head(), "ready"))
    async with started(tmp_path / "another", [{"git": course.url}], hosts, images=images) as it:
        await until(lambda: it.is_state(course.head(), "ready"))
        await until(lambda: (e := it.state(course.head())) and e.summary)
        assert it.builder.orders == []


async def test_a_forced_push_builds_where_the_branch_stands_now(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host], secret: SecretRef
) -> None:
    course = git_server.create("course")
    configuration = configured([{"git": course.url}], hosts={"git": {"webhook_secret": secret.model_dump()}})
    async with started(tmp_path, configuration, hosts) as it:
        await until(lambda: (e := it.state(course.head())) and e.summary and e.image)
        from tests.support.git_server import git

        git("commit", "--quiet", "--amend", "--message=Amended", cwd=course.work)
        git("push", "--quiet", "--force", "origin", "main", cwd=course.work)
        amended = course.head()
        await tell(it, course, amended)
        await until(lambda: it.is_state(amended, "ready"))
        assert it.builder.revisions[1:] == [amended]
        assert it.entry().revision_of("main") == amended


async def test_a_repository_that_is_not_there_is_shown_with_the_reason(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    async with started(tmp_path, [{"git": git_server.url + "/nothing.git"}], hosts) as it:
        await until(lambda: it.entry().problem)
        assert "nothing.git" in (it.entry().problem or "")
        health = await it.controller.health()
        assert health.ok, "a Git host that is away does not make the controller ill"
        assert [check.service for check in health.checks if not check.ok] == ["Git repository"]


async def test_a_build_that_fails_is_shown_with_its_kind_and_not_tried_again_by_itself(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host], secret: SecretRef
) -> None:
    course = git_server.create("course")
    configuration = configured([{"git": course.url}], hosts={"git": {"webhook_secret": secret.model_dump()}})
    images = Shelf()
    from tests.support.scripted_builder import ScriptedBuilder

    builder = ScriptedBuilder(images)
    builder.fail(course.head(), FailureKind.REPOSITORY)
    async with started(tmp_path, configuration, hosts, builder=builder) as it:
        await until(lambda: it.is_state(course.head(), "failed"))
        entry = it.state(course.head())
        assert entry is not None
        assert (entry.failure, entry.message) == (FailureKind.REPOSITORY, "It ended with repository.")
        looked = it.entry().looked_at
        await tell(it, course, course.head())
        await until(lambda: it.entry().looked_at != looked)
        await until(lambda: (e := it.state(course.head())) and e.summary)
        assert len(it.builder.orders) == 1
        mended = course.push({"requirements.txt": "numpy"}, "Mend")
        await tell(it, course, mended)
        await until(lambda: it.is_state(mended, "ready"))
