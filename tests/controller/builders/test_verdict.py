"""Whose fault a failed build is, and in which words: what the programs really wrote, and what people are told."""

from __future__ import annotations

import pytest

from prebinder.builders.child import ChildFailure, Step
from prebinder.builders.verdict import judge
from prebinder.model.failure import FailureKind as Kind

URL = "https://git.example.org/course.git"
PIP = 'Error: building at STEP "RUN pip install -r requirements.txt": while running runtime: exit status 1'
POST = 'Error: building at STEP "RUN ./postBuild": while running runtime: exit status'


@pytest.mark.parametrize(
    ("step", "tail", "kind", "says"),
    [
        (
            Step.BUILD,
            ["ERROR: Could not find a version", "ERROR: No matching distribution found for nope", PIP],
            Kind.REPOSITORY,
            'The step "RUN pip install -r requirements.txt" failed: ERROR: No matching distribution found for nope',
        ),
        (
            Step.BUILD,
            ["Traceback (most recent call last):", "\x1b[31mKeyError: 'x'\x1b[0m", "made 3 files", f"{POST} 4"],
            Kind.REPOSITORY,
            "exit code 4, its last words: made 3 files",
        ),
        (Step.BUILD, ["Killed", f"{POST} 137"], Kind.MEMORY, "limit 2.0 GB"),
        (Step.BUILD, ["dd: write error: No space left on device", f"{POST} 1"], Kind.ENGINE, "disk of the machine"),
        (
            Step.BUILD,
            [
                "Error: creating build container: initializing source docker://python:3: pinging container registry "
                'registry-1.docker.io: Get "https://registry-1.docker.io/v2/": dial tcp: lookup '
                "registry-1.docker.io on 10.0.0.53:53: no such host"
            ],
            Kind.UNSUPPORTED,
            "The base image python:3 cannot be pulled",
        ),
        (
            Step.BUILD,
            [
                "Error: creating build container: initializing source docker://nope/nope:1: reading manifest 1 in "
                "docker.io/nope/nope: requested access to the resource is denied"
            ],
            Kind.REPOSITORY,
            "does not exist, or is not public",
        ),
        (
            Step.BUILD,
            [
                "Error: creating build container: initializing source docker://python:3: reading manifest 3 in "
                "docker.io/library/python: toomanyrequests: You have reached your pull rate limit"
            ],
            Kind.REGISTRY,
            "could not be pulled",
        ),
        (
            Step.BUILD,
            [
                "curl: (6) Could not resolve host: micro.mamba.pm",
                'Error: building at STEP "RUN bash /tmp/install-base-env.bash": while running runtime: exit status 6',
            ],
            Kind.UNSUPPORTED,
            "needs conda",
        ),
        (
            Step.BUILD,
            ['Error: building at STEP "RUN true": unable to find network with name or ID x: network not found'],
            Kind.ENGINE,
            "container engine failed",
        ),
        (Step.BUILD, [], Kind.ENGINE, "container engine failed"),
        (
            Step.BUILD,
            ['Error: building at STEP "COPY nothing /": no items matching glob "/x/nothing" copied: no such file'],
            Kind.REPOSITORY,
            'The step "COPY nothing /" failed',
        ),
        (
            Step.BUILD,
            ['Error: dockerfile parse error line 3: unknown instruction: "RUNN"'],
            Kind.REPOSITORY,
            "unknown instruction",
        ),
        (
            Step.CLONE,
            [f"fatal: unable to access '{URL}/': Could not resolve host: git.example.org"],
            Kind.GIT_HOST,
            "Could not resolve host",
        ),
        (
            Step.CLONE,
            [f"fatal: unable to access '{URL}/': The requested URL returned error: 503"],
            Kind.GIT_HOST,
            "503",
        ),
        (Step.CLONE, [f"fatal: repository '{URL}/' not found"], Kind.NOT_FOUND, "no such repository"),
        (
            Step.CLONE,
            [f"fatal: could not read Username for '{URL}': terminal prompts disabled"],
            Kind.NOT_FOUND,
            "or not for us",
        ),
        (Step.CLONE, ["fatal: transport 'file' not allowed"], Kind.REFUSED, "may not fetch"),
        (Step.CONTENT, ["fatal: clone of 'x' into submodule path 'y' failed"], Kind.REPOSITORY, "submodule"),
        (
            Step.PUSH,
            ["Pushing x", "Error: writing blob: initiating layer upload: unauthorized: authentication required"],
            Kind.REGISTRY,
            "refuses our credentials",
        ),
        (
            Step.PUSH,
            ["Error: trying to reuse blob: dial tcp 127.0.0.1:1: refused"],
            Kind.REGISTRY,
            "could not be pushed",
        ),
    ],
)
def test_verdicts(step: Step, tail: list[str], kind: Kind, says: str) -> None:
    failure = judge(ChildFailure(step=step), 1, tail, 2 * 10**9)
    assert failure.kind is kind, failure
    assert says in failure.message
    assert "\x1b" not in failure.message
    assert len(failure.message.splitlines()) <= 2


@pytest.mark.parametrize("step", [Step.REVISION, Step.UNSUPPORTED, Step.CONTENT])
def test_what_the_process_knows_itself_is_told_as_it_is(step: Step) -> None:
    failure = judge(ChildFailure(step=step, message="the reason"), 1, ["log"], 0)
    assert failure.message == "the reason"


def test_a_process_that_was_killed_is_not_the_repositorys_fault() -> None:
    assert judge(None, -9, ["log"], 0).kind is Kind.ENGINE


def test_a_process_that_broke_is_our_fault() -> None:
    assert judge(None, 1, ["ImportError: x"], 0).kind is Kind.INTERNAL


def test_a_killed_step_without_a_memory_limit_is_the_repositorys() -> None:
    assert judge(ChildFailure(step=Step.BUILD), 1, [f"{POST} 137"], 0).kind is Kind.REPOSITORY
