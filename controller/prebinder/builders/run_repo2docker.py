"""The process of one build: `python -m prebinder.builders.run_repo2docker ORDER.json` runs repo2docker once.

repo2docker changes directory, sets process-wide hooks and never gives memory back: hence a process of its own, which
can also be killed. Guarantees:
- It ends, with everything below it, when its parent ends or it gets SIGTERM.
- What is built is the commit that was ordered, or nothing.
- No file of this machine gets into a build or its log through a link in the repository.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from repo2docker.app import Repo2Docker
from repo2docker.buildpacks import DockerBuildPack, LegacyBinderDockerBuildPack
from repo2docker.contentproviders import Git
from repo2docker.contentproviders.base import ContentProvider, ContentProviderException
from repo2docker.engine import BuildError, ContainerEngineException, ImageLoadError
from traitlets.config import Config

from prebinder.builders.child import ChildFailure, ChildOrder, Step
from prebinder.builders.lines import run
from prebinder.builders.pip_pack import PipBuildPack, UnsupportedPack
from prebinder.processes import kill_below

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_CHILD_SUBREAPER = 36
_FETCHED = re.compile(r"(?:https?|git|ssh)://")
_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PIP_BASE = "docker.io/library/python:3.12-slim-bookworm"
_USER_ID, _USER_NAME = 1000, "jovyan"
_ENGINES = {"podman": "prebinder-podman", "buildah": "prebinder-buildah", "docker": "docker"}


class StepFailed(Exception):
    """A step failed in a way that we know."""

    def __init__(self, step: Step, message: str = "") -> None:
        super().__init__(message)
        self.failure = ChildFailure(step=step, message=message)


class RevisionGit(ContentProvider):  # type: ignore[misc]  # repo2docker has no types
    """repo2docker's Git content provider, for one commit: found also when no branch holds it, checked afterwards."""

    def detect(self, source: str, ref: str | None = None, extra_args: Any = None) -> dict[str, str] | None:
        if ref is None or not _REVISION.fullmatch(ref) or not _FETCHED.match(source):
            return None
        return {"repo": source, "revision": ref}

    def fetch(self, spec: dict[str, str], output_dir: str, yield_output: bool = False) -> Iterator[str]:
        url, revision = spec["repo"], spec["revision"]
        self._revision = revision
        try:
            yield from run(["git", "clone", "--no-checkout", "--", url, output_dir])
        except subprocess.CalledProcessError:
            raise StepFailed(Step.CLONE) from None
        if not self._has(revision, output_dir):
            with contextlib.suppress(subprocess.CalledProcessError):
                yield from run(["git", "fetch", "--quiet", "origin", revision], cwd=output_dir)
            if not self._has(revision, output_dir):
                raise StepFailed(Step.REVISION, f"The repository has no commit {revision} (any more).")
        try:
            yield from run(["git", "reset", "--hard", revision], cwd=output_dir)
            yield from run(["git", "submodule", "update", "--init", "--recursive"], cwd=output_dir)
        except subprocess.CalledProcessError:
            raise StepFailed(Step.CONTENT) from None
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=output_dir, capture_output=True, text=True, timeout=60, check=False
        )
        if head.stdout.strip() != revision:
            raise StepFailed(Step.REVISION, f"The checkout is {head.stdout.strip()[:64]}, not {revision}.")

    def _has(self, revision: str, folder: str) -> bool:
        found = subprocess.run(
            ["git", "cat-file", "-e", f"{revision}^{{commit}}"],
            cwd=folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return found.returncode == 0

    @property
    def content_id(self) -> str:
        return self._revision[:7]


class _Build(Repo2Docker):  # type: ignore[misc]
    def fetch(self, url: str, ref: str | None, checkout_path: str) -> None:
        super().fetch(url, ref, checkout_path)
        refuse_links_outside(Path(checkout_path))


def refuse_links_outside(checkout: Path) -> None:
    """Refuse links that lead out of the repository where build packs read files on this machine.

    Build packs open `Dockerfile`, `apt.txt` and their like here, outside any container, and quote them in messages.
    """
    root = checkout.resolve()
    for folder in (checkout, checkout / "binder", checkout / ".binder"):
        if folder.is_symlink() and not folder.resolve().is_relative_to(root):
            raise StepFailed(Step.CONTENT, f"{folder.name} is a link that leads out of the repository.")
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_symlink() and not _resolve(entry).is_relative_to(root):
                name = entry.relative_to(checkout)
                raise StepFailed(Step.CONTENT, f"{name} is a link that leads out of the repository.")


def _resolve(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # a loop
        return Path("/")


def application(order: ChildOrder) -> Repo2Docker:
    """repo2docker as the order wants it."""
    config = Config()
    config.PodmanEngine.memory = order.memory_limit
    config.PodmanEngine.auth_file = str(order.auth_file or "")
    config.PodmanEngine.tls_verify = order.tls_verify
    config.BuildahEngine.certificates = str(order.certificates or "")
    if order.engine == "docker" and not order.push:
        config.DockerEngine.extra_buildx_build_args = ["--load"]
    app = _Build(config=config)
    app.json_logs = True
    app.repo, app.ref = order.clone_url, order.revision
    app.git_workdir = str(order.checkout)
    app.cleanup_checkout = False
    app.output_image_spec = order.image
    app.engine = _ENGINES[order.engine]
    app.user_id, app.user_name = _USER_ID, _USER_NAME
    app.run, app.push = False, order.push
    others = [p for p in app.content_providers if p is not Git and p.__name__ != "Local"]
    app.content_providers = [*(others if order.all_providers else []), RevisionGit]
    if order.build_pack == "pip":
        app.buildpacks = [LegacyBinderDockerBuildPack, DockerBuildPack, PipBuildPack]
        app.default_buildpack = PipBuildPack
        app.base_image = order.base_image or _PIP_BASE
    elif order.base_image:
        app.base_image = order.base_image
    return app


def build(order: ChildOrder) -> ChildFailure | None:
    """Run the build; None when the image is there."""
    app = application(order)
    app.initialize()
    try:
        app.start()
    except StepFailed as error:
        return error.failure
    except UnsupportedPack as error:
        return ChildFailure(step=Step.UNSUPPORTED, message=str(error))
    except ImageLoadError:
        return ChildFailure(step=Step.PUSH)
    except (BuildError, ContainerEngineException):
        return ChildFailure(step=Step.BUILD)
    except (ContentProviderException, subprocess.CalledProcessError) as error:
        return ChildFailure(step=Step.CLONE, message=str(error))
    except AttributeError as error:
        # repo2docker goes on with None when no content provider takes the URL.
        if "NoneType" in str(error):
            return ChildFailure(step=Step.UNSUPPORTED, message="No enabled content provider takes this repository.")
        raise
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        # Build packs raise these about files that they cannot read.
        return ChildFailure(step=Step.CONTENT, message=str(error))
    except SystemExit as end:
        return ChildFailure(step=Step.CONTENT) if end.code else None
    return None


def _end_with_parent(parent: int) -> None:
    def end(number: int, frame: object) -> None:
        try:
            kill_below(psutil.Process())  # orphans too: we are their reaper
        finally:
            os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> int:
    order = ChildOrder.model_validate_json(Path(sys.argv[1]).read_bytes())
    _end_with_parent(order.parent)
    failure = build(order)
    if failure is None:
        return 0
    print(json.dumps({"failed": failure.model_dump(mode="json")}), file=sys.stderr, flush=True)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
