"""GitHub and GitHub Enterprise: questions by PyGithub, lists of refs by Git itself, GitHub's own webhooks.

Refs are listed by `git ls-remote` and not by the REST API: one request instead of one for every hundred branches and
tags, all refs as of one moment, tags peeled, and no part of the API's quota (60 an hour without a token). A quota
that is used up therefore stops summaries and statuses, not builds: `resolve` then asks Git too.

PyGithub blocks and is slow to import, so it is imported at the first question and runs in threads of its own. A client
of it has one connection that two questions at once would take each other's answers from: each thread has its own.
The shapes of requests and answers are those of docs.github.com/rest (API version 2022-11-28) and
docs.github.com/webhooks.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, ValidationError

from prebinder.config.models import GitHubConfig
from prebinder.hosts.base import Commit, CommitState, RefChanged
from prebinder.hosts.git import CommitId, reason, short_ref
from prebinder.hosts.git_command import one_line
from prebinder.hosts.ls_remote import ask_refs, ask_revision
from prebinder.hosts.signature import check_signature
from prebinder.model.failure import (
    HostError,
    HostUnavailable,
    RefNotFound,
    RepositoryNotFound,
    SpecError,
    WebhookMalformed,
)
from prebinder.model.policy import Refs
from prebinder.model.spec import HEAD, MAX_REF_LENGTH, Repository, Spec, check_ref, github, is_revision

if TYPE_CHECKING:
    from github import Github
    from github.Requester import Requester

T = TypeVar("T")
_THREADS = 4
_PAGE = 100
_STATUS_CONTEXT = "prebinder"
_DESCRIPTION_LIMIT = 140
"""GitHub refuses longer descriptions of a status."""


class _RepositoryPart(BaseModel):
    full_name: str = Field(max_length=200)


class _CommitPart(BaseModel):
    id: CommitId


class PushEvent(BaseModel):
    """What is read of GitHub's `push`, also sent when a branch or tag is made or deleted."""

    ref: str = Field(max_length=MAX_REF_LENGTH + len("refs/heads/"))
    after: CommitId
    deleted: bool = False
    head_commit: _CommitPart | None = None
    """The commit, also when `after` is an annotated tag."""
    repository: _RepositoryPart


class RefEvent(BaseModel):
    """What is read of GitHub's `create` and `delete`; `ref` is a short name."""

    ref: str = Field(max_length=MAX_REF_LENGTH)
    repository: _RepositoryPart


class GitHubHost:
    """GitHub, or a GitHub Enterprise server. `timeout` seconds bound one question."""

    def __init__(self, config: GitHubConfig, *, timeout: float = 20.0) -> None:
        self._config = config
        self._timeout = timeout
        self._url = config.url.rstrip("/")
        self._local = threading.local()
        """The client of each thread, and its token."""

    async def resolve(self, spec: Spec) -> str:
        if is_revision(spec.ref):
            return spec.ref
        try:
            return await self._resolve(spec)
        except RefNotFound:
            if spec.ref not in ("main", "master"):
                raise
            return await self._resolve(Spec(spec.repository, HEAD))
        except _QuotaUsed:
            return await ask_revision(
                self.clone_url(spec.repository), spec.ref, timeout=self._timeout, settings=self._git_settings()
            )

    async def _resolve(self, spec: Spec) -> str:
        path = f"/repos/{spec.repository.name}/commits/{quote(spec.ref, safe='')}"

        def ask(requester: Requester) -> str:
            _, answer = requester.requestJsonAndCheck("GET", path, headers={"Accept": "application/vnd.github.sha"})
            # PyGithub wraps a text that is no JSON; a commit id of digits alone would be JSON.
            return str(answer.get("data", "")) if isinstance(answer, dict) else str(answer)

        revision = (await self._ask(ask, spec.repository, spec.ref)).strip()
        if not is_revision(revision):
            raise HostUnavailable(f"GitHub's answer about {spec.repository.name} is no commit id.")
        return revision

    async def list_refs(self, repository: Repository) -> Refs:
        return await ask_refs(self.clone_url(repository), timeout=self._timeout, settings=self._git_settings())

    async def commits_between(
        self, repository: Repository, old: str | None, new: str, limit: int
    ) -> tuple[Commit, ...]:
        if old is not None and old != new:
            try:
                compare = functools.partial(_compare, f"/repos/{repository.name}", old, new, limit)
                return await self._ask(compare, repository, new) or (Commit(new, ""),)
            except (RefNotFound, RepositoryNotFound):
                # A force push took the old commit away; or the repository: the next question tells.
                pass
        return (await self._ask(functools.partial(_commit, f"/repos/{repository.name}", new), repository, new),)

    def clone_url(self, repository: Repository) -> str:
        return f"{self._url}/{repository.name}.git"

    def web_url(self, repository: Repository, revision: str | None = None) -> str:
        page = f"{self._url}/{repository.name}"
        return f"{page}/tree/{revision}" if revision else page

    def verify_webhook(self, headers: Mapping[str, str], body: bytes) -> tuple[RefChanged, ...]:
        check_signature(self._config.webhook_secret, headers, ("x-hub-signature-256",), body)
        if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            raise WebhookMalformed("The webhook sends a form. Set its content type to application/json on GitHub.")
        try:
            match headers.get("x-github-event"):
                case "push":
                    push = PushEvent.model_validate_json(body)
                    ref, name = short_ref(push.ref), push.repository.full_name
                    revision = None if push.deleted else push.head_commit.id if push.head_commit else push.after
                case "create" | "delete":
                    event = RefEvent.model_validate_json(body)
                    ref, name, revision = check_ref(event.ref), event.repository.full_name, None
                case _:
                    return ()
            repository = github(name)
        except (ValidationError, SpecError) as error:
            raise WebhookMalformed(f"GitHub's webhook is not as documented: {reason(error)}") from None
        if ref is None:
            return ()
        return (RefChanged(repository, ref, revision, headers.get("x-github-delivery", "")[:200] or None),)

    async def report_status(
        self, repository: Repository, revision: str, state: CommitState, description: str, target_url: str | None
    ) -> None:
        """Needs `report_status` in the configuration and a token that may write statuses; else nothing is done."""
        if not self._config.report_status or self._config.token is None:
            return
        status = {
            "state": state.value,
            "context": _STATUS_CONTEXT,
            "description": one_line(description, _DESCRIPTION_LIMIT),
            **({"target_url": target_url} if target_url else {}),
        }

        def write(requester: Requester) -> None:
            requester.requestJsonAndCheck("POST", f"/repos/{repository.name}/statuses/{revision}", input=status)

        try:
            await self._ask(write, repository, revision)
        except HostUnavailable:
            raise
        except HostError as error:
            raise HostUnavailable(f"GitHub does not take the state of {revision[:7]}: {error}") from None

    async def _ask(self, question: Callable[[Requester], T], repository: Repository, ref: str) -> T:
        """Ask in a thread. Raises RefNotFound, RepositoryNotFound or HostUnavailable."""
        work = functools.partial(self._ask_here, question, repository, ref)
        try:
            async with asyncio.timeout(self._timeout * 1.5):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise HostUnavailable(f"{self._where} did not answer within {self._timeout:g} s.") from None

    def _ask_here(self, question: Callable[[Requester], T], repository: Repository, ref: str) -> T:
        from github import GithubException
        from requests import RequestException

        try:
            return question(self._github().requester)
        except GithubException as error:
            raise self._failure(error.status, error.data, error.headers or {}, repository, ref) from None
        except RequestException as error:
            raise HostUnavailable(f"{self._where} does not answer: {_cause(error)}.") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            # PyGithub and we both trip over answers of another shape.
            raise HostUnavailable(f"{self._where} answers something that is not GitHub's API.") from None

    def _failure(
        self, status: int, data: Any, headers: Mapping[str, Any], repository: Repository, ref: str
    ) -> HostError:
        """What an HTTP error of the REST API means (docs.github.com/rest/using-the-rest-api/troubleshooting)."""
        said = one_line(str(data.get("message", ""))) if isinstance(data, dict) else ""
        lower = {str(name).lower(): str(value) for name, value in headers.items()}
        wait = _pause(lower, time.time())
        match status:
            case 403 | 429 if wait is not None or "rate limit" in said.lower():
                hint = "" if self._config.token else " Set hosts.github.token: with a token it is 5000 an hour."
                return _QuotaUsed(f"{self._where} answers no more requests for now (rate limit).{hint}", wait)
            case 401:
                return HostUnavailable(f"{self._where} refuses the token: the operator must renew hosts.github.token.")
            case 409 | 422:
                return RefNotFound(f'{repository.name} has no branch, tag or commit "{one_line(ref)}".')
            case 403 | 404 | 451:
                return RepositoryNotFound(
                    f"There is no repository {repository.name} on {self._where}, or it is private."
                )
            case _:
                return HostUnavailable(f"{self._where} answered {status}{': ' + said if said else ''}.", wait)

    def _token(self) -> str | None:
        """The token as it is now: a renewed one is in force without a restart."""
        if self._config.token is None:
            return None
        try:
            return self._config.token.read().get_secret_value()
        except ValueError as error:
            raise HostUnavailable(f"hosts.github.token cannot be read: {error}.") from None

    def _git_settings(self) -> dict[str, str]:
        """The token for Git, for addresses of this server alone."""
        token = self._token()
        if token is None:
            return {}
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        return {f"http.{self._url}/.extraHeader": f"Authorization: Basic {basic}"}

    @property
    def _where(self) -> str:
        return urlsplit(self._url).hostname or self._url

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "github")

    def _github(self) -> Github:
        from github import Auth, Github

        token = self._token()
        before: tuple[str | None, Github] | None = getattr(self._local, "client", None)
        if before is not None and before[0] == token:
            return before[1]
        if before is not None:
            before[1].close()
        client = Github(
            auth=Auth.Token(token) if token else None,
            base_url=self._config.api_url.rstrip("/"),
            timeout=max(1, math.ceil(self._timeout)),
            user_agent="prebinder",
            retry=None,
            seconds_between_requests=None,
            lazy=True,
        )
        self._local.client = token, client
        return client


class _QuotaUsed(HostUnavailable):
    """The REST API's quota is used up; Git itself still answers."""


def _compare(path: str, old: str, new: str, limit: int, requester: Requester) -> tuple[Commit, ...]:
    """`GET /repos/{owner}/{repo}/compare/{base}...{head}` lists oldest first: count, then read the last pages."""
    address = f"{path}/compare/{old}...{new}"
    _, first = requester.requestJsonAndCheck("GET", address, parameters={"per_page": _PAGE, "page": 1})
    total = int(first["total_commits"])
    last_page = max(1, math.ceil(total / _PAGE))
    commits: list[Commit] = []
    for page in range(last_page, 0, -1):
        answer = first
        if page > 1:
            _, answer = requester.requestJsonAndCheck("GET", address, parameters={"per_page": _PAGE, "page": page})
        commits += [_to_commit(item) for item in reversed(answer["commits"])]
        if len(commits) >= limit:
            break
    return tuple(commits[:limit])


def _commit(path: str, revision: str, requester: Requester) -> Commit:
    """`GET /repos/{owner}/{repo}/git/commits/{sha}`: without the files that `/commits/{ref}` brings along."""
    _, answer = requester.requestJsonAndCheck("GET", f"{path}/git/commits/{revision}")
    return Commit(revision, one_line(str(answer["message"]).strip().partition("\n")[0]))


def _to_commit(item: Mapping[str, Any]) -> Commit:
    return Commit(item["sha"], one_line(str(item["commit"]["message"]).strip().partition("\n")[0]))


def _pause(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that GitHub asks to wait, by `retry-after` or, when nothing remains, `x-ratelimit-reset`."""
    try:
        if "retry-after" in headers:
            return max(0.0, float(headers["retry-after"]))
        if headers.get("x-ratelimit-remaining") == "0":
            return max(0.0, float(headers["x-ratelimit-reset"]) - now)
    except (KeyError, ValueError):
        return None
    return None


def _cause(error: Exception) -> str:
    """The kind of a network error; its text would show addresses and objects."""
    return {"ConnectTimeout": "timeout", "ReadTimeout": "timeout", "SSLError": "its certificate is not trusted"}.get(
        type(error).__name__, "no connection"
    )
