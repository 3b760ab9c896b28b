"""A Git host in memory: for tests of what the controller does when a host is slow, away or asks for a pause.

Real Git over HTTP is in tests/support/git_server.py, and most tests of rounds use that.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from prebinder.hosts.base import Commit, CommitState, RefChanged
from prebinder.model.catalogue import RefKind
from prebinder.model.failure import HostError, RefNotFound, RepositoryNotFound, WebhookRejected
from prebinder.model.policy import Ref, Refs
from prebinder.model.spec import HEAD, Repository, Spec, is_revision


def commit_id(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class MemoryHost:
    """Branches are lists of commits, oldest first; tags are commits. `main` is the default branch."""

    branches: dict[tuple[Repository, str], list[Commit]] = field(default_factory=dict)
    tags: dict[tuple[Repository, str], str] = field(default_factory=dict)
    away: HostError | None = None
    history_away: HostError | None = None
    gate: asyncio.Event | None = None
    """When set, lists of refs wait for it."""
    status_gate: asyncio.Event | None = None
    """When set, states of builds wait for it before they are written."""
    questions: list[str] = field(default_factory=list)
    statuses: list[tuple[str, CommitState, str | None]] = field(default_factory=list)

    def push(self, repository: Repository, *messages: str, branch: str = "main") -> str:
        """Commits, one a message; the id of the last."""
        line = self.branches.setdefault((repository, branch), [])
        for message in messages:
            line.append(Commit(commit_id(f"{repository}/{branch}/{len(line)}/{message}"), message))
        return line[-1].revision

    def force(self, repository: Repository, message: str, branch: str = "main") -> str:
        """Replace the branch by one new commit."""
        self.branches[repository, branch] = []
        return self.push(repository, f"{message} (forced)", branch=branch)

    def head(self, repository: Repository, branch: str = "main") -> str:
        return self.branches[repository, branch][-1].revision

    def changed(
        self, repository: Repository, ref: str = "main", revision: str | None = None, delivery: str = ""
    ) -> bytes:
        """The body of this host's webhook."""
        return json.dumps({"name": repository.name, "ref": ref, "revision": revision, "delivery": delivery}).encode()

    async def resolve(self, spec: Spec) -> str:
        self.questions.append("resolve")
        await self._answer()
        if is_revision(spec.ref):
            return spec.ref
        name = "main" if spec.ref == HEAD else spec.ref
        if line := self.branches.get((spec.repository, name)):
            return line[-1].revision
        if tag := self.tags.get((spec.repository, name)):
            return tag
        raise RefNotFound(f"{spec.repository.name} has no {spec.ref}.")

    async def list_refs(self, repository: Repository) -> Refs:
        self.questions.append("refs")
        branches = [
            Ref(name, RefKind.BRANCH, line[-1].revision) for (r, name), line in self.branches.items() if r == repository
        ]
        tags = [Ref(name, RefKind.TAG, revision) for (r, name), revision in self.tags.items() if r == repository]
        if self.gate is not None:
            await self.gate.wait()
        await self._answer()
        if not branches:
            raise RepositoryNotFound(f"There is no {repository.name}.")
        return Refs((*branches, *tags), "main")

    async def commits_between(
        self, repository: Repository, old: str | None, new: str, limit: int
    ) -> tuple[Commit, ...]:
        self.questions.append("commits")
        await self._answer()
        if self.history_away:
            raise self.history_away
        for (r, _), line in self.branches.items():
            ids = [commit.revision for commit in line]
            if r == repository and new in ids:
                end = ids.index(new) + 1
                start = ids.index(old) + 1 if old in ids else end - 1
                return tuple(reversed(line[start:end]))[:limit]
        return (Commit(new, ""),)

    def clone_url(self, repository: Repository) -> str:
        return f"https://memory.invalid/{repository.name}"

    def web_url(self, repository: Repository, revision: str | None = None) -> str:
        return self.clone_url(repository)

    def verify_webhook(self, headers: Mapping[str, str], body: bytes) -> tuple[RefChanged, ...]:
        if headers.get("x-signed") != "yes":
            raise WebhookRejected("The webhook is not signed.")
        said = json.loads(body)
        repository = next((r for r, _ in self.branches if r.name == said["name"]), None)
        if repository is None:
            return ()
        return (RefChanged(repository, said["ref"], said["revision"], said["delivery"] or None),)

    async def report_status(
        self, repository: Repository, revision: str, state: CommitState, description: str, target_url: str | None
    ) -> None:
        if self.status_gate is not None:
            await self.status_gate.wait()
        self.statuses.append((revision, state, target_url))

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise self.away
