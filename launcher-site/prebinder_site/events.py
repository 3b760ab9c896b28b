"""The events that a click sends to the browser: the Binder API's server-sent events.

Guarantees, for clients in the wild: every event is one `data:` line of JSON and an empty line; its `phase` is one of
BinderHub's; its `message` ends in a newline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus

from prebinder.model.events import BuildEvent, Phase
from prebinder.model.failure import Failure, FailureKind

_STATUS = {
    FailureKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    FailureKind.REFUSED: HTTPStatus.FORBIDDEN,
    FailureKind.GIT_HOST: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureKind.REGISTRY: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureKind.HUB: HTTPStatus.SERVICE_UNAVAILABLE,
    FailureKind.ENGINE: HTTPStatus.SERVICE_UNAVAILABLE,
}
_FAILED_BUILD_STATUS = HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass(frozen=True)
class ClickEvent:
    """One event. `fields` are the further members of its JSON object."""

    phase: Phase
    message: str
    fields: Mapping[str, str | int] = field(default_factory=dict)
    failure: FailureKind | None = None
    """On `failed`: for records."""

    @cached_property
    def encoded(self) -> bytes:
        """As sent. Encoded once, however many people follow the same build."""
        message = self.message if self.message.endswith("\n") else self.message + "\n"
        body = json.dumps({"phase": self.phase.value, "message": message, **self.fields})
        return b"data: " + body.encode("ascii") + b"\n\n"


def waiting(message: str) -> ClickEvent:
    return ClickEvent(Phase.WAITING, message)


def launching(message: str) -> ClickEvent:
    return ClickEvent(Phase.LAUNCHING, message)


def failed(failure: Failure, status: int | None = None, build: str | None = None) -> ClickEvent:
    """The last event of a click that led nowhere. Its message says what failed, why and what to do.

    Our own page also reads the kind, for its heading and advice, and the id of the build, for its log; other clients
    look past them.
    """
    message = failure.message.strip() or failure.kind.heading
    code = int(status or _STATUS.get(failure.kind, _FAILED_BUILD_STATUS))
    fields: dict[str, str | int] = {"status_code": code, "failure": failure.kind.value}
    if build:
        fields["build"] = build
    return ClickEvent(Phase.FAILED, message, fields, failure.kind)


def from_build(event: BuildEvent, build: str | None = None) -> ClickEvent:
    """An event of a build as a click shows it. `built` is the caller's to word, `failed` carries its kind."""
    if event.phase is Phase.FAILED:
        return failed(Failure(event.failure or FailureKind.INTERNAL, event.message), build=build)
    return ClickEvent(event.phase, event.message)
