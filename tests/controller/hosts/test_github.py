"""GitHub by PyGithub and Git, against a stand-in modelled on GitHub's published REST description.

The real GitHub cannot be reached from everywhere these tests run; see tests/support/standin_github.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from starlette.responses import Response

from prebinder.config.models import GitHubConfig, SecretRef
from prebinder.hosts.base import Commit, CommitState, RefChanged
from prebinder.hosts.github import GitHubHost
from prebinder.hosts.signature import sign
from prebinder.model.failure import (
    HostUnavailable,
    RefNotFound,
    RepositoryNotFound,
    WebhookMalformed,
    WebhookRejected,
)
from prebinder.model.spec import Spec, github
from tests.support.bad_git_servers import silent_server
from tests.support.git_server import GitRepository, GitServer, serve
from tests.support.standin_github import StandInGitHub

COURSE = github("octo/course")
SECRET = "as long as a secret should be"


@pytest.fixture
def course(git_server: GitServer) -> GitRepository:
    return git_server.create("course")


@pytest.fixture
def standin(git_server: GitServer) -> StandInGitHub:
    return StandInGitHub(git_server.folder)


@pytest.fixture
def address(standin: StandInGitHub) -> Iterator[str]:
    with serve(standin.app()) as url:
        yield url


@pytest.fixture
def host(address: str) -> GitHubHost:
    return GitHubHost(GitHubConfig(api_url=address, url=address), timeout=10)


def with_token(address: str, tmp_path: Path, **more: Any) -> GitHubHost:
    (tmp_path / "token").write_text("t0ken-of-the-operator")
    token = SecretRef(file=tmp_path / "token")
    return GitHubHost(GitHubConfig(api_url=address, url=address, token=token, **more), timeout=10)


@pytest.mark.parametrize("ref", ["main", "HEAD", "master", "v1.0", "teach/week-1"])
async def test_a_ref_resolves_to_its_commit(course: GitRepository, host: GitHubHost, ref: str) -> None:
    course.tag("v1.0", annotated=True)
    course.branch("teach/week-1")
    assert await host.resolve(Spec(COURSE, ref)) == course.head()


async def test_the_beginning_of_a_commit_id_resolves(course: GitRepository, host: GitHubHost) -> None:
    assert await host.resolve(Spec(COURSE, course.head()[:8])) == course.head()


async def test_resolving_costs_one_request_and_a_full_commit_id_none(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub
) -> None:
    await host.resolve(Spec(COURSE, "a" * 40))
    assert standin.asked == []
    await host.resolve(Spec(COURSE, "main"))
    assert standin.asked == ["GET /repos/octo/course/commits/main"]


async def test_a_ref_and_a_repository_that_are_not_there_are_told_apart(
    course: GitRepository, host: GitHubHost
) -> None:
    with pytest.raises(RefNotFound, match='octo/course has no branch, tag or commit "nope"'):
        await host.resolve(Spec(COURSE, "nope"))
    with pytest.raises(RepositoryNotFound, match="octo/none"):
        await host.resolve(Spec(github("octo/none"), "main"))
    with pytest.raises(RepositoryNotFound):
        await host.list_refs(github("octo/none"))


async def test_listing_refs_uses_no_quota(course: GitRepository, host: GitHubHost, standin: StandInGitHub) -> None:
    course.tag("v1.0", annotated=True)
    refs = await host.list_refs(COURSE)
    assert {(r.name, r.revision) for r in refs.refs} == {("main", course.head()), ("v1.0", course.head())}
    assert refs.default_branch == "main"
    assert standin.asked == []


async def test_commits_are_told_newest_first(course: GitRepository, host: GitHubHost) -> None:
    old = course.head()
    second, third = course.push({"a": "1"}, "Second\n\nWith a body"), course.push({"a": "2"}, "Third \x1b[31m")
    assert await host.commits_between(COURSE, old, third, 50) == (
        Commit(third, "Third [31m"),
        Commit(second, "Second"),
    )
    assert await host.commits_between(COURSE, None, third, 50) == (Commit(third, "Third [31m"),)


async def test_of_many_commits_the_newest_are_told_from_the_last_pages(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prebinder.hosts.github._PAGE", 3)
    old = course.head()
    ids = [course.push({"a": str(number)}, f"Commit {number}") for number in range(8)][::-1]
    assert [c.revision for c in await host.commits_between(COURSE, old, ids[0], 4)] == ids[:4]
    assert [c.revision for c in await host.commits_between(COURSE, old, ids[0], 50)] == ids


async def test_questions_at_once_each_get_their_own_answer(
    course: GitRepository, git_server: GitServer, host: GitHubHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment is held for sure: each thread has said what it asks, none has asked yet."""
    from github.Requester import HTTPRequestsConnectionClass as Connection

    other = git_server.create("other")
    other.push({"a": "1"}, "Another head")
    both, say = threading.Barrier(2), Connection.request

    def request(connection: Connection, *words: Any, **more: Any) -> None:
        say(connection, *words, **more)
        both.wait(20)

    monkeypatch.setattr(Connection, "request", request)
    answers = await asyncio.gather(host.resolve(Spec(COURSE, "main")), host.resolve(Spec(github("octo/other"), "main")))
    assert answers == [course.head(), other.head()]


async def test_after_a_force_push_there_is_just_the_new_commit(course: GitRepository, host: GitHubHost) -> None:
    assert await host.commits_between(COURSE, "f" * 40, course.head(), 50) == (Commit(course.head(), "First"),)


async def test_a_used_up_quota_says_when_to_come_back_and_refs_still_resolve(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub
) -> None:
    standin.limited = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 600)}
    assert await host.resolve(Spec(COURSE, "main")) == course.head()
    with pytest.raises(HostUnavailable, match=r"rate limit.*hosts\.github\.token") as caught:
        await host.commits_between(COURSE, None, course.head(), 5)
    assert caught.value.retry_after == pytest.approx(600, abs=30)


async def test_a_pause_that_is_asked_for_is_passed_on(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub
) -> None:
    standin.limited = {"retry-after": "42"}
    with pytest.raises(HostUnavailable) as caught:
        await host.commits_between(COURSE, None, course.head(), 5)
    assert caught.value.retry_after == 42


@pytest.mark.parametrize(
    "answer",
    [
        Response("oops", 500),
        Response("<html>", 502),
        Response("", 200),
        Response("[]", 200, media_type="application/json"),
        Response("{}", 200, media_type="application/json"),
        Response('{"message": ["x"]}', 503, media_type="application/json"),
        Response("x" * 100, 200),
        Response(b"\xff\xfe", 200),
    ],
)
async def test_answers_that_are_none_are_an_unavailable_host(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub, answer: Response
) -> None:
    standin.broken = answer
    with pytest.raises(HostUnavailable):
        await host.resolve(Spec(COURSE, "main"))
    with pytest.raises(HostUnavailable):
        await host.commits_between(COURSE, "a" * 40, course.head(), 5)
    # One question, one request: whoever asks decides whether to ask again.
    assert len(standin.asked) == 2


async def test_a_github_that_is_away_or_silent_is_unavailable() -> None:
    away = GitHubHost(GitHubConfig(api_url="http://127.0.0.1:1", url="http://127.0.0.1:1"), timeout=2)
    with pytest.raises(HostUnavailable, match="does not answer: no connection"):
        await away.resolve(Spec(COURSE, "main"))
    with silent_server() as url:
        silent = GitHubHost(GitHubConfig(api_url=url, url=url), timeout=0.3)
        with pytest.raises(HostUnavailable, match=r"did not answer within 0\.3 s"):
            await silent.resolve(Spec(COURSE, "main"))


async def test_a_token_opens_private_repositories_and_is_never_shown(
    course: GitRepository, standin: StandInGitHub, address: str, tmp_path: Path, host: GitHubHost
) -> None:
    standin.token = "t0ken-of-the-operator"
    with pytest.raises(RepositoryNotFound):
        await host.resolve(Spec(COURSE, "main"))
    known = with_token(address, tmp_path)
    assert await known.resolve(Spec(COURSE, "main")) == course.head()
    (tmp_path / "token").write_text("a-wrong-one")
    with pytest.raises(HostUnavailable, match="refuses the token") as caught:
        await known.resolve(Spec(COURSE, "main"))
    assert "a-wrong-one" not in str(caught.value)
    (tmp_path / "token").unlink()
    with pytest.raises(HostUnavailable, match=r"hosts\.github\.token cannot be read"):
        await known.resolve(Spec(COURSE, "main"))


async def test_the_state_of_a_build_is_written_to_the_commit(
    course: GitRepository, standin: StandInGitHub, address: str, tmp_path: Path
) -> None:
    host = with_token(address, tmp_path, report_status=True)
    await host.report_status(COURSE, course.head(), CommitState.SUCCESS, "Ready\n" + "x" * 500, "https://x.example/")
    (status,) = standin.statuses
    assert (status["sha"], status["state"], status["context"]) == (course.head(), "success", "prebinder")
    assert status["description"].startswith("Ready xxx")
    assert status["target_url"] == "https://x.example/"


async def test_no_state_is_written_unless_configured(
    course: GitRepository, host: GitHubHost, standin: StandInGitHub, address: str, tmp_path: Path
) -> None:
    await host.report_status(COURSE, course.head(), CommitState.PENDING, "Building", None)
    await with_token(address, tmp_path).report_status(COURSE, course.head(), CommitState.PENDING, "Building", None)
    assert standin.asked == []


async def test_a_state_that_cannot_be_written_is_an_unavailable_host(
    standin: StandInGitHub, address: str, tmp_path: Path
) -> None:
    host = with_token(address, tmp_path, report_status=True)
    with pytest.raises(HostUnavailable, match="does not take the state of aaaaaaa"):
        await host.report_status(github("octo/none"), "a" * 40, CommitState.ERROR, "x", None)


def test_enterprise_servers_have_addresses_of_their_own() -> None:
    host = GitHubHost(GitHubConfig(api_url="https://ghe.example.org/api/v3", url="https://ghe.example.org/"))
    assert host.clone_url(COURSE) == "https://ghe.example.org/octo/course.git"
    assert host.web_url(COURSE) == "https://ghe.example.org/octo/course"
    assert host.web_url(COURSE, "a" * 40) == f"https://ghe.example.org/octo/course/tree/{'a' * 40}"


def test_pygithub_is_not_loaded_before_it_is_needed() -> None:
    program = (
        "import sys, pathlib; from prebinder.hosts import create_hosts;"
        "from prebinder.config.models import HostsConfig;"
        "create_hosts(HostsConfig(), pathlib.Path('x')); sys.exit('github' in sys.modules or 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


class TestWebhook:
    """Bodies as in docs.github.com/webhooks/webhook-events-and-payloads, cut to what is read and a little more."""

    @pytest.fixture
    def host(self, tmp_path: Path) -> GitHubHost:
        (tmp_path / "secret").write_text(SECRET)
        return GitHubHost(GitHubConfig(webhook_secret=SecretRef(file=tmp_path / "secret")))

    @staticmethod
    def deliver(host: GitHubHost, event: str, content: Any, **headers: str) -> tuple[RefChanged, ...]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        given = {
            "x-github-event": event,
            "x-github-delivery": "72d3162e-cc78",
            "x-hub-signature-256": sign(SECRET, body),
            "content-type": "application/json",
        }
        return host.verify_webhook({**given, **headers}, body)

    PUSH: ClassVar[dict[str, Any]] = {
        "ref": "refs/heads/main",
        "before": "a" * 40,
        "after": "b" * 40,
        "created": False,
        "deleted": False,
        "forced": False,
        "head_commit": {"id": "b" * 40, "message": "Change"},
        "repository": {"id": 1, "name": "course", "full_name": "octo/course", "private": False},
    }

    def test_a_push(self, host: GitHubHost) -> None:
        assert self.deliver(host, "push", self.PUSH) == (RefChanged(COURSE, "main", "b" * 40, "72d3162e-cc78"),)

    def test_the_push_of_an_annotated_tag_tells_the_commit(self, host: GitHubHost) -> None:
        content = {**self.PUSH, "ref": "refs/tags/v1", "after": "c" * 40}
        assert self.deliver(host, "push", content)[0].revision == "b" * 40

    def test_a_deleted_branch(self, host: GitHubHost) -> None:
        content = {**self.PUSH, "after": "0" * 40, "deleted": True, "head_commit": None}
        assert self.deliver(host, "push", content)[0].revision is None

    @pytest.mark.parametrize("event", ["create", "delete"])
    def test_a_ref_that_is_made_or_deleted(self, host: GitHubHost, event: str) -> None:
        content = {"ref": "v1.0", "ref_type": "tag", "repository": self.PUSH["repository"]}
        assert self.deliver(host, event, content) == (RefChanged(COURSE, "v1.0", None, "72d3162e-cc78"),)

    @pytest.mark.parametrize("event", ["ping", "star", "something-new"])
    def test_events_that_change_no_ref(self, host: GitHubHost, event: str) -> None:
        assert self.deliver(host, event, {"zen": "Keep it logically awesome."}) == ()

    def test_a_wrong_signature(self, host: GitHubHost) -> None:
        with pytest.raises(WebhookRejected):
            self.deliver(host, "push", self.PUSH, **{"x-hub-signature-256": sign("wrong", b"")})

    def test_a_ping_needs_a_signature_too(self, host: GitHubHost) -> None:
        with pytest.raises(WebhookRejected):
            host.verify_webhook({"x-github-event": "ping"}, b"{}")

    def test_a_form_is_told_what_to_change(self, host: GitHubHost) -> None:
        with pytest.raises(WebhookMalformed, match="application/json"):
            self.deliver(host, "push", b"payload=%7B%7D", **{"content-type": "application/x-www-form-urlencoded"})

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff",
            {},
            {**PUSH, "repository": {"full_name": "../../etc"}},
            {**PUSH, "repository": None},
            {**PUSH, "ref": "refs/heads/a b"},
            {**PUSH, "after": "zzz"},
        ],
    )
    def test_a_body_that_is_not_as_documented(self, host: GitHubHost, content: Any) -> None:
        with pytest.raises(WebhookMalformed):
            self.deliver(host, "push", content)
