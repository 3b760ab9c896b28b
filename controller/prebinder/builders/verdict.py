"""Why a build failed: from the step that failed and the last lines of the log to a kind and words for people. Pure.

The kind decides whether it is tried again (`model/failure.py`), so the rule is: blame the surroundings only for what
the surroundings said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prebinder.builders.child import ChildFailure, Step
from prebinder.builders.lines import plain
from prebinder.model.failure import Failure, FailureKind

_MESSAGE_LIMIT = 300
_STEP_LIMIT = 120
_EXIT_KILLED = 137  # 128 + SIGKILL

_STEP = re.compile(r'(?:building at STEP|step) "(?P<step>.*?)": (?P<cause>.*)', re.DOTALL)
_DOCKER_STEP = re.compile(
    r'failed to solve: process "(?:/bin/(?:ba)?sh -c )?(?P<step>.*)" did not complete(?P<cause>.*)'
)
_EXIT = re.compile(r"exit (?:status|code):? (\d+)")
_TROUBLE = re.compile(
    r"\b(error|fatal|exception|failed|failure|denied|not found|no such|cannot|could not)\b", re.IGNORECASE
)
_ENGINE_LINE = re.compile(r'^(?:Error: |ERROR: failed to |subprocess exited|time="|\[.*\] ?$|STEP \d|-->)')

_NO_REPOSITORY = re.compile(
    r"repository .* not found|not found: |returned error: (?:401|403|404|410)|could not read Username|"
    r"does not appear to be a git repository|Repository not found|Authentication failed|terminal prompts disabled",
    re.IGNORECASE,
)
_NOT_ALLOWED = re.compile(r"transport '.*' not allowed|is not a recognized transport", re.IGNORECASE)
_NO_SPACE = re.compile(r"no space left on device", re.IGNORECASE)
_PULL = re.compile(
    r"(?:initializing source|pinging container registry|creating build container|failed to resolve source metadata|"
    r"unable to pull|error pulling|pull access)",
    re.IGNORECASE,
)
_PULL_OFFLINE = re.compile(
    r"dial tcp|no such host|i/o timeout|connection refused|network is unreachable|certificate|TLS handshake",
    re.IGNORECASE,
)
_IMAGE = re.compile(r'docker://"?(?P<image>[^\s":]+(?::[\w.-]+)?)|(?P<docker>[\w./-]+:[\w.-]+): failed to resolve')
_PACK_OFFLINE = re.compile(r"micro\.mamba\.pm|(?:conda|repo)\.anaconda|condaforge|conda-forge", re.IGNORECASE)
_OFFLINE = re.compile(
    r"could not resolve host|temporary failure in name resolution|name or service not known|failed to connect|"
    r"connection (?:refused|timed out|error|failed)|network is unreachable|certificate",
    re.IGNORECASE,
)
_ENGINE_BROKEN = re.compile(
    r"cannot connect to (?:podman|the docker daemon)|error (?:creating|opening) (?:storage|database|lock)|"
    r"did not get container start message|OCI runtime (?:attempted|error|create failed|permission)|"
    r"(?:runc|crun): |netavark|setting up network|unable to find network|database is locked|input/output error",
    re.IGNORECASE,
)


def judge(failed: ChildFailure | None, exit_code: int, tail: Sequence[str], memory_limit: int) -> Failure:
    """The failure of a build that was not stopped by us. `tail` is the last lines of its log."""
    lines = [line for line in (plain(line).strip() for line in tail) if line]
    text = "\n".join(lines)
    if failed is None:
        if exit_code < 0 or exit_code == _EXIT_KILLED:
            return Failure(FailureKind.ENGINE, "The build's process was killed from outside.")
        return Failure(FailureKind.INTERNAL, f"repo2docker ended with exit code {exit_code}: {_cause(lines)}")
    match failed.step:
        case Step.CLONE:
            return _clone(failed, lines, text)
        case Step.REVISION:
            return Failure(FailureKind.NOT_FOUND, failed.message)
        case Step.UNSUPPORTED:
            return Failure(FailureKind.UNSUPPORTED, failed.message)
        case Step.CONTENT:
            return Failure(FailureKind.REPOSITORY, _short(failed.message) or _cause(lines))
        case Step.PUSH:
            return _push(lines, text)
        case Step.BUILD:
            return _build(lines, text, memory_limit)


def _clone(failed: ChildFailure, lines: Sequence[str], text: str) -> Failure:
    cause = _cause(lines) if lines else _short(failed.message)
    if _NOT_ALLOWED.search(text):
        return Failure(FailureKind.REFUSED, f"Git may not fetch this: {cause}")
    if _NO_SPACE.search(text):
        return _machine_full()
    if _NO_REPOSITORY.search(text):
        return Failure(FailureKind.NOT_FOUND, f"The Git host has no such repository, or not for us: {cause}")
    return Failure(FailureKind.GIT_HOST, f"The repository could not be cloned: {cause}")


def _push(lines: Sequence[str], text: str) -> Failure:
    cause = _cause(lines)
    if re.search(r"unauthorized|denied|authentication required", text, re.IGNORECASE):
        return Failure(FailureKind.REGISTRY, f"The registry refuses our credentials: {cause}")
    return Failure(FailureKind.REGISTRY, f"The image was built but could not be pushed: {cause}")


def _build(lines: Sequence[str], text: str, memory_limit: int) -> Failure:
    last = next((line for line in reversed(lines) if line.startswith(("Error:", "ERROR:"))), "")
    found = _STEP.search(last) or _DOCKER_STEP.search(text)
    cause = found["cause"] if found else last
    exited = _EXIT.search(cause)
    # A step that could not even start is the engine's doing, or that of a base image out of reach.
    if exited is None or not found:
        if _PULL.search(last):
            return _pull(last)
        if _NO_SPACE.search(last):
            return _machine_full()
        if _ENGINE_BROKEN.search(last) or not last:
            return Failure(FailureKind.ENGINE, f"The container engine failed: {_short(cause or _cause(lines))}")
        if not found:
            return Failure(FailureKind.REPOSITORY, _short(last.partition(": ")[2]) or _cause(lines))
    step = _shorten(" ".join(found["step"].split()), _STEP_LIMIT) if found else ""
    if exited and int(exited[1]) == _EXIT_KILLED and memory_limit:
        return Failure(
            FailureKind.MEMORY, f'The step "{step}" was ended for lack of memory (limit {_size(memory_limit)}).'
        )
    if _NO_SPACE.search(text):
        return _machine_full()
    said = _cause(lines) if exited else _short(cause)
    if exited and not _TROUBLE.search(said):
        said = f"exit code {exited[1]}, its last words: {said}"
    if _PACK_OFFLINE.search(text) and _OFFLINE.search(text):
        return Failure(
            FailureKind.UNSUPPORTED,
            f"The repository needs conda, whose servers cannot be reached from here: {said}\n"
            "Repositories with a requirements.txt can be built with build_pack: pip.",
        )
    return Failure(FailureKind.REPOSITORY, f'The step "{step}" failed: {said}')


def _pull(last: str) -> Failure:
    named = _IMAGE.search(last)
    image = (named["image"] or named["docker"]).removeprefix("//") if named else "the base image"
    if _PULL_OFFLINE.search(last):
        return Failure(
            FailureKind.UNSUPPORTED,
            f"The base image {image} cannot be pulled: its registry cannot be reached from here.\n"
            "Build with build_pack: pip, or set builder.base_image to an image that is there.",
        )
    if re.search(r"manifest unknown|not found|denied|unauthorized|invalid reference", last, re.IGNORECASE):
        return Failure(FailureKind.REPOSITORY, f"The base image {image} does not exist, or is not public.")
    return Failure(FailureKind.REGISTRY, f"The base image {image} could not be pulled: {_short(last)}")


def _machine_full() -> Failure:
    return Failure(FailureKind.ENGINE, "The disk of the machine that builds is full. Free space on it.")


def _cause(lines: Sequence[str]) -> str:
    """The line that most probably says why: the last one about trouble, else the last one at all."""
    said = [line for line in lines[-60:] if not _ENGINE_LINE.match(line)]
    trouble = [line for line in said[-25:] if _TROUBLE.search(line)]
    return _short((trouble or said or list(lines) or ["the log says nothing"])[-1])


def _short(text: str) -> str:
    return _shorten(" ".join(plain(text).split()), _MESSAGE_LIMIT)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 10**9 else f"{number / 1e6:.0f} MB"
