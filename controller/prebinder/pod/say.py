"""How the pod's containers speak: JSON lines on standard error, and a last word for the controller."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from prebinder.builders.kubernetes.wire import PushReport

# Where Kubernetes reads a container's termination message (core/v1 Container, terminationMessagePath).
_LAST_WORD = Path("/dev/termination-log")
_LIMIT = 1000


def say(phase: str, message: str) -> None:
    """A line of log; the form is repo2docker's `--json-logs`."""
    sys.stderr.write(json.dumps({"phase": phase, "message": message.rstrip("\n") + "\n"}) + "\n")
    sys.stderr.flush()


def report(last: PushReport) -> None:
    """The last word. A problem is also a line of log."""
    if last.problem:
        last = last.model_copy(update={"problem": last.problem[:_LIMIT]})
        say("pushing", last.problem or "")
    with contextlib.suppress(OSError):
        _LAST_WORD.write_text(last.model_dump_json(exclude_defaults=True))
