"""What the controller refuses, beside the errors of `prebinder.model.failure`."""

from __future__ import annotations

from prebinder.model.failure import FailureKind, PrebinderError


class QueueFull(PrebinderError):
    """As many builds wait as the configuration allows."""

    kind = FailureKind.REFUSED
    retry_after = 30.0
    """Seconds after which to ask again."""


class UnsupportedHost(PrebinderError):
    """This installation reaches no host of this kind."""

    kind = FailureKind.UNSUPPORTED


class BuildNotFound(PrebinderError):
    """No build has this id, or several ids begin so."""

    kind = FailureKind.NOT_FOUND


class BuildEnded(PrebinderError):
    """The build has ended, so that it cannot be cancelled."""

    kind = FailureKind.REFUSED


class HookClosed(PrebinderError):
    """No webhook is taken here: no such provider, or no secret in the configuration."""

    kind = FailureKind.NOT_FOUND
