"""Why something failed, and what happens next.

Every failure that can reach a person carries a kind. The kind says what is to be done about it (its *disposition*) and
in which words a page names it. The kind is stored with the build, so that it means the same in the ledger, in the
event stream, on the site and in the command line.

    PrebinderError
    ├── SpecError             a Binder URL that names nothing (bad characters, missing parts)
    ├── HostError             a Git host did not answer as it should
    │   ├── RefNotFound       the repository answers, but has no such ref
    │   ├── RepositoryNotFound
    │   ├── HostUnavailable   timeout, refused connection, 5xx; carries retry_after when the host named one
    │   └── WebhookRejected   signature missing or wrong
    │       └── WebhookMalformed  rightly signed, but not what the host documents
    ├── RegistryError         the image store is away, full, or refuses us
    ├── EngineError           podman or docker is missing, away or broken
    ├── BuildFailed           an attempt ended without an image; carries a Failure
    ├── HubError              JupyterHub is away or refuses us
    └── ConfigurationError    the configuration file is not usable
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Disposition(StrEnum):
    """What happens after a failure."""

    STALLED = "stalled"
    """A person must change something first: not tried again by itself until the revision or configuration changes."""
    RETRY = "retry"
    """The surroundings failed, not the repository: tried again with a growing pause, a bounded number of times."""
    FINAL = "final"
    """Ended on purpose (cancelled, superseded): not tried again unless asked for."""


class FailureKind(StrEnum):
    """The kinds of failure of a build or a launch. The value is stored and shown; never rename one."""

    REPOSITORY = "repository"
    """The repository's own build steps failed."""
    NOT_FOUND = "not-found"
    """The repository or ref does not exist on its Git host."""
    REFUSED = "refused"
    """The configuration does not allow it."""
    TIMEOUT = "timeout"
    """Longer than the time limit."""
    MEMORY = "memory"
    """More memory than the limit."""
    DISK = "disk"
    """More disk than the quota."""
    LOG_FLOOD = "log-flood"
    """More log than the limit."""
    UNSUPPORTED = "unsupported"
    """Needs a content provider or build pack that this installation has not enabled or cannot reach."""
    GIT_HOST = "git-host"
    """The Git host did not answer in time, or with an error."""
    REGISTRY = "registry"
    """The image could not be pushed, or the registry is away."""
    ENGINE = "engine"
    """The container engine (or cluster) failed, not the build in it."""
    HUB = "hub"
    """JupyterHub refused or failed to start the server."""
    INTERRUPTED = "interrupted"
    """The controller stopped in mid-build; the build is tried again."""
    CANCELLED = "cancelled"
    """Somebody cancelled it, or a newer revision took its place."""
    INTERNAL = "internal"
    """A defect of Prebinder itself."""

    @property
    def disposition(self) -> Disposition:
        if self in _RETRIED:
            return Disposition.RETRY
        if self is FailureKind.CANCELLED:
            return Disposition.FINAL
        return Disposition.STALLED

    @property
    def heading(self) -> str:
        """A short heading for people, without a full stop."""
        return _HEADINGS[self]

    @property
    def advice(self) -> str:
        """One sentence that says what the reader can do."""
        return _ADVICE[self]


_RETRIED = frozenset(
    {
        FailureKind.GIT_HOST,
        FailureKind.REGISTRY,
        FailureKind.ENGINE,
        FailureKind.INTERRUPTED,
        FailureKind.INTERNAL,
    }
)

_HEADINGS = {
    FailureKind.REPOSITORY: "The repository's build failed",
    FailureKind.NOT_FOUND: "No such repository or ref",
    FailureKind.REFUSED: "Not allowed here",
    FailureKind.TIMEOUT: "The build took too long",
    FailureKind.MEMORY: "The build ran out of memory",
    FailureKind.DISK: "The build filled its disk quota",
    FailureKind.LOG_FLOOD: "The build wrote too much log",
    FailureKind.UNSUPPORTED: "Not supported on this installation",
    FailureKind.GIT_HOST: "The Git host did not answer",
    FailureKind.REGISTRY: "The image registry did not answer",
    FailureKind.ENGINE: "The container engine failed",
    FailureKind.HUB: "JupyterHub did not start the server",
    FailureKind.INTERRUPTED: "The build was interrupted",
    FailureKind.CANCELLED: "The build was cancelled",
    FailureKind.INTERNAL: "Something went wrong inside Prebinder",
}

_ADVICE = {
    FailureKind.REPOSITORY: "Read the last lines of the log, correct the repository and push again.",
    FailureKind.NOT_FOUND: "Check the spelling of the repository and of the branch, tag or commit.",
    FailureKind.REFUSED: "Ask the operator of this site.",
    FailureKind.TIMEOUT: "Make the build shorter, or ask the operator to raise limits.time.",
    FailureKind.MEMORY: "Make the build smaller, or ask the operator to raise limits.memory.",
    FailureKind.DISK: "Make the image smaller, or ask the operator to raise limits.disk.",
    FailureKind.LOG_FLOOD: "Make the build quieter, or ask the operator to raise limits.log.",
    FailureKind.UNSUPPORTED: "Ask the operator which build packs and content providers are enabled.",
    FailureKind.GIT_HOST: "Try again in a few minutes.",
    FailureKind.REGISTRY: "Try again in a minute; tell the operator if it lasts.",
    FailureKind.ENGINE: "Try again in a minute; tell the operator if it lasts.",
    FailureKind.HUB: "Try again in a minute; tell the operator if it lasts.",
    FailureKind.INTERRUPTED: "Try again.",
    FailureKind.CANCELLED: "Click again to build it.",
    FailureKind.INTERNAL: "Tell the operator; the controller's log says more.",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure: its kind and one or two lines for a person, without traceback or secret."""

    kind: FailureKind
    message: str


class PrebinderError(Exception):
    """Base of all errors meant for people. `str(error)` is one or two lines: what failed, why, and what to do."""

    kind: FailureKind = FailureKind.INTERNAL

    def failure(self) -> Failure:
        """The same as a value, to store or to send."""
        return Failure(self.kind, str(self))


class SpecError(PrebinderError):
    """A Binder URL's provider, repository or ref is not well formed."""

    kind = FailureKind.NOT_FOUND


class RefusedError(PrebinderError):
    """The configuration does not allow this repository or request."""

    kind = FailureKind.REFUSED


class HostError(PrebinderError):
    """A Git host did not answer as it should."""

    kind = FailureKind.GIT_HOST


class RefNotFound(HostError):
    """The repository answers, but has no such ref."""

    kind = FailureKind.NOT_FOUND


class RepositoryNotFound(HostError):
    """The Git host knows no such repository, or hides it from us."""

    kind = FailureKind.NOT_FOUND


class HostUnavailable(HostError):
    """Timeout, refused connection, rate limit or server error.

    `retry_after` is the pause in seconds that the host asked for, when it named one.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WebhookRejected(HostError):
    """A webhook's signature is missing or wrong, or its body is not what the host documents."""

    kind = FailureKind.REFUSED


class WebhookMalformed(WebhookRejected):
    """The signature is right, the body is not what the host documents."""


class RegistryError(PrebinderError):
    """The image store is away, full, or refuses our credentials."""

    kind = FailureKind.REGISTRY


class EngineError(PrebinderError):
    """The container engine is missing, away or broken."""

    kind = FailureKind.ENGINE


class HubError(PrebinderError):
    """JupyterHub is away or refuses us."""

    kind = FailureKind.HUB


class BuildFailed(PrebinderError):
    """A build attempt ended without an image."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.kind = failure.kind


class ConfigurationError(PrebinderError):
    """The configuration file cannot be used. The text names file, line, key, and what to write instead."""

    kind = FailureKind.REFUSED
