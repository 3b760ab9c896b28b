"""What the rest of Prebinder asks of a Git host.

A host answers questions about repositories and turns its own webhooks into one typed `RefChanged`. Blocking libraries
run in threads inside the host's module; every question has a time limit. No method retries: the caller does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from prebinder.model.policy import Refs
from prebinder.model.spec import Repository, Spec


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: full id and first line of its message (untrusted text, at most 200 characters)."""

    revision: str
    summary: str


@dataclass(frozen=True, slots=True)
class RefChanged:
    """A host says that a ref of a repository moved.

    `ref` is the short name of a branch or tag (`main`, `v1.0`). `revision` is None when the ref was deleted, or when
    the host does not tell; of an annotated tag it may be the tag object: the next look at the refs peels it.
    """

    repository: Repository
    ref: str
    revision: str | None
    delivery: str | None = None
    """The host's id of the delivery, to drop repeats."""


class CommitState(StrEnum):
    """What is reported to the host for a commit."""

    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"


class Host(Protocol):
    """One kind of Git host."""

    async def resolve(self, spec: Spec) -> str:
        """The full commit id that a ref names now; annotated tags are peeled; `main` and `master` that do not exist
        mean the default branch; a full commit id is returned as it is.

        Raises RefNotFound, RepositoryNotFound or HostUnavailable.
        """
        ...

    async def list_refs(self, repository: Repository) -> Refs:
        """All branches and tags. Raises RepositoryNotFound or HostUnavailable."""
        ...

    async def commits_between(
        self, repository: Repository, old: str | None, new: str, limit: int
    ) -> tuple[Commit, ...]:
        """The commits reachable from `new` and not from `old`, newest first, at most `limit`; with `old` None just
        `new`. When `old` is gone (force push), just `new`.

        Raises RepositoryNotFound or HostUnavailable.
        """
        ...

    def clone_url(self, repository: Repository) -> str:
        """What Git clones, without credentials."""
        ...

    def web_url(self, repository: Repository, revision: str | None = None) -> str:
        """Where people read the repository, or the revision in it."""
        ...

    def verify_webhook(self, headers: Mapping[str, str], body: bytes) -> tuple[RefChanged, ...]:
        """What a webhook says; empty for events that change no ref (ping). `headers` has lower-case keys.

        Raises WebhookRejected when the signature is not the body's; WebhookMalformed when it is, and the body still
        is not what the host documents.
        """
        ...

    async def report_status(
        self, repository: Repository, revision: str, state: CommitState, description: str, target_url: str | None
    ) -> None:
        """Write the state of a build to the commit. Hosts that cannot do nothing. Raises HostUnavailable."""
        ...
