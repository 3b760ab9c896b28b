"""Plain Git: any URL that `git ls-remote` reads, and a small signed webhook of Prebinder's own.

The webhook is JSON, `POST /hooks/git`:

    {"repository": "<clone URL>", "ref": "refs/heads/main", "before": "<commit id>", "after": "<commit id>"}

An `after` of zeros says that the ref was deleted. The header `X-Prebinder-Signature-256` (or GitHub's
`X-Hub-Signature-256`) is `sha256=` and the hex HMAC-SHA256 of the raw body; `X-Prebinder-Delivery` is an id that tells
repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from prebinder.config.models import SecretRef
from prebinder.hosts.base import Commit, CommitState, RefChanged
from prebinder.hosts.history import ask_commits
from prebinder.hosts.ls_remote import ask_refs, ask_revision
from prebinder.hosts.signature import check_signature
from prebinder.model.failure import SpecError, WebhookMalformed
from prebinder.model.policy import Refs
from prebinder.model.spec import MAX_REF_LENGTH, MAX_SPEC_LENGTH, Repository, Spec, check_ref, git_url

SIGNATURE_HEADERS = ("x-prebinder-signature-256", "x-hub-signature-256")
DELIVERY_HEADER = "x-prebinder-delivery"
_HISTORY_TIME = 3.0
"""A fetch may take this many times as long as a question."""

CommitId = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]


class PushNotice(BaseModel):
    """The body of the webhook."""

    repository: str = Field(max_length=MAX_SPEC_LENGTH)
    ref: str = Field(max_length=MAX_REF_LENGTH + len("refs/heads/"))
    before: CommitId | None = None
    after: CommitId | None = None


class GitHost:
    """Any Git server. `scratch` is a folder for short-lived files, `timeout` seconds bound one question."""

    def __init__(self, scratch: Path, *, webhook_secret: SecretRef | None = None, timeout: float = 20.0) -> None:
        self._scratch = scratch
        self._secret = webhook_secret
        self._timeout = timeout

    async def resolve(self, spec: Spec) -> str:
        return await ask_revision(spec.repository.name, spec.ref, timeout=self._timeout)

    async def list_refs(self, repository: Repository) -> Refs:
        return await ask_refs(repository.name, timeout=self._timeout)

    async def commits_between(
        self, repository: Repository, old: str | None, new: str, limit: int
    ) -> tuple[Commit, ...]:
        return await ask_commits(
            repository.name, old, new, limit, scratch=self._scratch, timeout=self._timeout * _HISTORY_TIME
        )

    def clone_url(self, repository: Repository) -> str:
        return repository.name

    def web_url(self, repository: Repository, revision: str | None = None) -> str:
        """The URL itself: plain Git has no pages, and no known address of a revision."""
        return repository.name

    def verify_webhook(self, headers: Mapping[str, str], body: bytes) -> tuple[RefChanged, ...]:
        check_signature(self._secret, headers, SIGNATURE_HEADERS, body)
        try:
            notice = PushNotice.model_validate_json(body)
            repository = git_url(notice.repository)
            ref = short_ref(notice.ref)
        except (ValidationError, SpecError) as error:
            raise WebhookMalformed(f"The webhook's body is not as documented: {reason(error)}") from None
        if ref is None:
            return ()
        revision = None if notice.after is None or not notice.after.strip("0") else notice.after
        return (RefChanged(repository, ref, revision, headers.get(DELIVERY_HEADER, "")[:200] or None),)

    async def report_status(
        self, repository: Repository, revision: str, state: CommitState, description: str, target_url: str | None
    ) -> None:
        """Plain Git keeps no states: nothing is done."""


def short_ref(full: str) -> str | None:
    """`main` of `refs/heads/main`, `v1` of `refs/tags/v1`; None of other refs (notes, pull requests).

    Raises SpecError when the name is none.
    """
    for prefix in ("refs/heads/", "refs/tags/"):
        if full.startswith(prefix):
            return check_ref(full.removeprefix(prefix))
    check_ref(full)
    return None


def reason(error: ValidationError | SpecError) -> str:
    """What is wrong with a body, in one line, without the body."""
    if isinstance(error, SpecError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}." if where else f"{first['msg']}."
