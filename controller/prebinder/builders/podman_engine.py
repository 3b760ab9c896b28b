"""repo2docker's container engine plugin for podman (entry point `prebinder-podman` in `repo2docker.engines`).

Guarantees:
- Build steps never get the host's network, nor privileges, nor credentials: those are given to `podman push` alone,
  as a file, after the last step has ended.
- The tag appears when the whole image is there, and not before (podman tags last).
- Unchanged layers are reused (`--layers`).

Written against repo2docker 2026.4's `engine.py`. podman finds this instance's storage and network by the environment
(`builders/engine.py`); whoever runs plain `jupyter-repo2docker --engine prebinder-podman` gets podman's defaults.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any

from repo2docker.engine import BuildError, Container, ContainerEngine, Image, ImageLoadError
from repo2docker.utils import R2dState
from traitlets import Bool, Int, Unicode

from prebinder.builders.lines import run

_INSPECT_TIMEOUT = 60


class PodmanEngine(ContainerEngine):  # type: ignore[misc]  # repo2docker has no types
    """Builds and pushes with the podman command line."""

    string_output = True

    memory = Int(0, help="Most memory of a build step in bytes; 0 is no limit.", config=True)
    auth_file = Unicode("", help="A Docker config.json with the registry's credentials, for pushing.", config=True)
    tls_verify = Bool(True, help="Whether pushing demands TLS with a valid certificate.", config=True)

    def build(
        self,
        *,
        push: bool = False,
        load: bool = False,
        buildargs: Mapping[str, str] | None = None,
        cache_from: Sequence[str] | None = None,
        container_limits: Mapping[str, Any] | None = None,
        tag: str = "",
        custom_context: bool = False,
        dockerfile: str = "",
        fileobj: IO[bytes] | None = None,
        path: str = "",
        labels: Mapping[str, str] | None = None,
        platform: str | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Build, yielding output by line; push when asked. `load` means nothing: images are always in the store.

        Raises BuildError when a step fails, ImageLoadError when the push fails.
        """
        with ExitStack() as stack:
            if fileobj is not None:
                path = stack.enter_context(tempfile.TemporaryDirectory(prefix="context-"))
                with tarfile.open(fileobj=fileobj) as context:
                    # Python before 3.11.4 (Debian 12 has 3.11.2) knows no filters; repo2docker made the archive.
                    context.extraction_filter = getattr(tarfile, "tar_filter", None)
                    context.extractall(path)  # noqa: S202
            command = self.build_command(
                tag=tag,
                path=path,
                dockerfile=dockerfile,
                buildargs=buildargs or {},
                labels=labels or {},
                memory=self.memory or (container_limits or {}).get("memory", 0),
                platform=platform or "",
            )
            try:
                yield from run(command)
            except (subprocess.CalledProcessError, OSError) as error:
                raise BuildError(str(error)) from error
        if push:
            self._push(tag)

    def build_command(self, **what: Any) -> list[str]:
        """The command of one build."""
        return build_command(**what)

    def _push(self, tag: str) -> None:
        self.log.info(f"Pushing {tag}\n", extra={"phase": R2dState.PUSHING})
        try:
            for line in run(push_command(tag, self.auth_file, self.tls_verify)):
                self.log.info(line, extra={"phase": R2dState.PUSHING})
        except (subprocess.CalledProcessError, OSError) as error:
            raise ImageLoadError(str(error)) from error

    def inspect_image(self, image: str) -> Image | None:
        """The image's configuration, or None when the store has no such image."""
        found = subprocess.run(
            ["podman", "image", "inspect", image], capture_output=True, timeout=_INSPECT_TIMEOUT, check=False
        )
        if found.returncode != 0:
            return None
        inspected = json.loads(found.stdout)[0]
        config = {"WorkingDir": "", **(inspected.get("Config") or {})}
        return Image(tags=inspected.get("RepoTags") or [], config=config)

    def run(self, *args: Any, **kwargs: Any) -> Container:
        """Not here: JupyterHub starts servers."""
        raise NotImplementedError("Prebinder's podman engine builds; JupyterHub runs what it built")


def build_command(
    *,
    tag: str,
    path: str,
    dockerfile: str,
    buildargs: Mapping[str, str],
    labels: Mapping[str, str],
    memory: int,
    platform: str,
) -> list[str]:
    """The podman command of one build. Pure, so that a test can read that nothing privileged is in it."""
    command = ["podman", "build", "--layers", "--force-rm", "--pull=missing", "--format=oci"]
    if tag:
        command.append(f"--tag={tag}")
    if dockerfile:
        command.append(f"--file={dockerfile}")
    if platform:
        command.append(f"--platform={platform}")
    if memory:
        # The same for both: no swap beyond it.
        command += [f"--memory={memory}", f"--memory-swap={memory}"]
    command += [f"--build-arg={key}={value}" for key, value in buildargs.items()]
    command += [f"--label={key}={value}" for key, value in labels.items()]
    return [*command, path]


def push_command(tag: str, auth_file: str, tls_verify: bool) -> list[str]:
    """The podman command of one push."""
    command = ["podman", "push", "--quiet"]
    if auth_file:
        command.append(f"--authfile={auth_file}")
    if not tls_verify:
        command.append("--tls-verify=false")
    return [*command, tag]
