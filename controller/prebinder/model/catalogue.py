"""What the controller publishes: every registered repository, its refs, revisions and the state of their images.

The launch endpoint keeps the catalogue in memory and answers clicks from it; the site's pages are generated from it.
It holds nothing secret.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from prebinder.model.events import BuildState
from prebinder.model.failure import FailureKind
from prebinder.model.spec import HEAD, Repository, Spec, is_revision


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageState(StrEnum):
    """What a click on a revision meets."""

    READY = "ready"
    QUEUED = "queued"
    BUILDING = "building"
    FAILED = "failed"
    ABSENT = "absent"
    """Nobody built it yet, or it was deleted: a click builds it."""


class RefKind(StrEnum):
    BRANCH = "branch"
    TAG = "tag"


class RevisionEntry(_Frozen):
    """One commit and its image."""

    revision: str
    state: ImageState
    since: datetime
    """When it came into this state."""
    image: str | None = None
    """When ready: what the Hub starts (by digest when a registry is used)."""
    summary: str | None = None
    """First line of the commit's message, when the host told it. Untrusted text."""
    build: str | None = None
    """Id of the newest build, for its log."""
    failure: FailureKind | None = None
    message: str | None = None


class RefEntry(_Frozen):
    """A branch or tag and the revision it stands at."""

    name: str
    kind: RefKind
    revision: str


class RepositoryEntry(_Frozen):
    """One registered repository."""

    repository: str
    """As in a Binder URL, `<provider>/<escaped name>`."""
    provider: str
    name: str
    title: str
    description: str = ""
    url: str
    """Where people read the repository."""
    default_branch: str | None = None
    urlpath: str | None = None
    """Where a launch lands unless the link says otherwise."""
    looked_at: datetime | None = None
    """When the Git host last answered or sent a webhook."""
    fed_by_webhook: bool = False
    """A webhook came within the last polling intervals: no need to look again at the click."""
    problem: str | None = None
    """Why the last look failed, in words for people."""
    refs: tuple[RefEntry, ...] = ()
    revisions: tuple[RevisionEntry, ...] = ()
    """Newest first. Every ref's revision is among them."""

    def revision_of(self, ref: str) -> str | None:
        """Resolve a branch, tag, HEAD, or full commit id from memory; None when unknown.

        Branches win over tags, as in BinderHub; `main` and `master` that do not exist mean the default branch.
        """
        if is_revision(ref):
            return ref
        by_name = {(r.kind, r.name): r.revision for r in self.refs}
        default = by_name.get((RefKind.BRANCH, self.default_branch or ""))
        if ref == HEAD:
            return default
        for kind in (RefKind.BRANCH, RefKind.TAG):
            if found := by_name.get((kind, ref)):
                return found
        return default if ref in ("main", "master") else None

    def entry(self, revision: str) -> RevisionEntry | None:
        return next((r for r in self.revisions if r.revision == revision), None)


class BuildSummary(_Frozen):
    """One line of the recent builds on the status page."""

    id: str
    repository: str
    ref: str
    revision: str
    state: BuildState
    at: datetime
    seconds: float | None = None
    failure: FailureKind | None = None


class Catalogue(_Frozen):
    """The whole of it. `version` grows with each change of content and is unique to it (it is the ETag)."""

    version: str
    published_at: datetime
    on_demand: str
    """The `on_demand` rule of the configuration: `registered`, `anyone` or `none`."""
    image_prefix: str
    repositories: tuple[RepositoryEntry, ...] = ()
    recent_builds: tuple[BuildSummary, ...] = ()
    configuration_problem: str | None = None
    """Set while the file on disk is invalid and the last good one is in force."""

    def find(self, repository: Repository) -> RepositoryEntry | None:
        wanted = str(repository).casefold() if repository.provider == "gh" else str(repository)
        for entry in self.repositories:
            have = entry.repository.casefold() if repository.provider == "gh" else entry.repository
            if have == wanted:
                return entry
        return None

    def resolve(self, spec: Spec) -> RevisionEntry | None:
        """The image state of what a link names, from memory alone; None when the catalogue does not know."""
        entry = self.find(spec.repository)
        revision = entry.revision_of(spec.ref) if entry else None
        return entry.entry(revision) if entry and revision else None
