"""Builds on this machine: one repo2docker process a build, bounded in time, memory, log and disk.

Guarantees:
- The process gets nothing of our environment but what `builders/engine.py` passes on: no secret of ours, no person's
  Git configuration or credentials; Git asks no questions and fetches by http, https, git and ssh only.
- Whatever ends a build (its end, a limit, `aclose`, the death of this process), nothing of it runs on, and its work
  folder goes; the tag is there only when the whole image is.
- The exit code is the judge; `builders/verdict.py` finds the words.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog
from pydantic import ValidationError

from prebinder.builders.base import BuildOrder, Progress
from prebinder.builders.child import ChildFailure, ChildLine, ChildOrder
from prebinder.builders.disk import MachineFull, Usage
from prebinder.builders.engine import Engine, call
from prebinder.builders.lines import clean
from prebinder.builders.verdict import judge
from prebinder.config.models import RegistryConfig
from prebinder.model.events import Phase
from prebinder.model.failure import BuildFailed, EngineError, Failure, FailureKind
from prebinder.mounts import mounts
from prebinder.processes import end, kill_tree

log = structlog.get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_CHUNK = 64 * 1024
_LINE_LIMIT = 8 * 2**20  # a JSON line; its message is at most 64 kB, escaped
_TAIL = 200
_LAST_LINES = 5.0
_CLEAN = (0, 1)
"""Exit codes of a build's process that ended in its own way."""
_PHASES = {"fetching": Phase.FETCHING, "building": Phase.BUILDING, "pushing": Phase.PUSHING}
_ORDER = (Phase.FETCHING, Phase.BUILDING, Phase.PUSHING)


@dataclass(slots=True)
class _Run:
    """One running build."""

    order: BuildOrder
    folder: Path
    process: asyncio.subprocess.Process
    stopped: Failure | None = None
    tail: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=_TAIL))
    failed: ChildFailure | None = None

    async def stop(self, failure: Failure) -> None:
        """End the build for a reason of ours; the first reason counts. A build that has ended keeps its own end."""
        if self.stopped is None and self.process.returncode is None:
            self.stopped = failure
            await asyncio.to_thread(kill_tree, self.process.pid)
        # What outlived it may hold its log open; the last lines have a moment to arrive.
        await asyncio.to_thread(_kill_marked, self.folder)
        asyncio.get_running_loop().call_later(_LAST_LINES, self.process._transport.close)  # type: ignore[attr-defined]


class LocalBuilder:
    """Builder for one machine; see the module."""

    keeps_running = False

    def __init__(
        self,
        engine: Engine,
        work: Path,
        *,
        registry: RegistryConfig | None = None,
        content_providers: Sequence[str] = ("git",),
        pip_base_image: str | None = None,
    ) -> None:
        """`work` holds a folder for each running build; `pip_base_image` is for orders that name no base image."""
        self._engine = engine
        self._work = work.absolute()
        self._registry = registry or RegistryConfig()
        self._all_providers = "all" in content_providers
        self._pip_base = pip_base_image
        self._running: dict[str, _Run] = {}
        self._untidy = False
        self._tidying = asyncio.Lock()

    def detach(self) -> None:
        """Nothing: a build here ends with this process."""

    async def build(self, order: BuildOrder) -> AsyncIterator[Progress]:
        """Run one build; see `Builder.build`. Raises BuildFailed."""
        yield Progress(Phase.FETCHING, f"Fetching {order.clone_url} at {order.revision}\n")
        try:
            run = await self._start(order)
        except OSError as error:
            message = f"The build could not be started: {error.strerror or error}."
            raise BuildFailed(Failure(FailureKind.ENGINE, message)) from None
        watching = asyncio.create_task(self._watch(run))
        try:
            async for progress in _progress(run):
                yield progress
            code = await (run.process.wait() if run.stopped is None else end(run.process))
            if run.stopped is not None:
                raise BuildFailed(run.stopped)
            if code != 0:
                raise BuildFailed(judge(run.failed, code, run.tail, order.memory_limit))
            await self._see_image(order)
        finally:
            watching.cancel()
            await asyncio.shield(self._finish(run))

    async def adopt(self) -> None:
        """Remove what builds of an earlier process left: work folders and half-built containers.

        Their processes ended with that process (run_repo2docker.py sees to it).
        """
        await asyncio.to_thread(self._work.mkdir, parents=True, exist_ok=True)
        for folder in await asyncio.to_thread(lambda: list(self._work.iterdir())):
            if folder.name not in self._running:
                await asyncio.to_thread(_kill_marked, folder)
                await asyncio.to_thread(_remove, folder)
        self._untidy = True
        await self._tidy()

    async def health(self) -> None:
        """Raises EngineError when nothing can be built now."""
        await call(self._engine, "version", timeout=15)
        await call(self._engine, "images", "--quiet", "--filter", "reference=prebinder.invalid/none", timeout=15)
        if shutil.disk_usage(self._work if self._work.exists() else self._work.parent).free < MachineFull.FLOOR:
            raise EngineError("The disk of the machine that builds is full. Free space on it.")

    async def _start(self, order: BuildOrder) -> _Run:
        if not _ID.fullmatch(order.id) or order.id in self._running:
            raise ValueError(f"not the id of a new build: {order.id[:80]!r}")
        folder = self._work / order.id
        await asyncio.to_thread(_remove, folder)
        for part in ("home", "tmp"):
            (folder / part).mkdir(parents=True)
        folder.chmod(0o700)
        child = ChildOrder(
            parent=os.getpid(),
            clone_url=order.clone_url,
            revision=order.revision,
            image=str(order.image),
            engine=self._engine.kind,
            build_pack=order.build_pack,
            base_image=order.base_image or (self._pip_base if order.build_pack == "pip" else None),
            push=order.push,
            memory_limit=order.memory_limit,
            auth_file=self._registry.credentials.absolute() if self._registry.credentials and order.push else None,
            tls_verify=not self._registry.insecure,
            all_providers=self._all_providers,
            checkout=folder / "checkout",
        )
        (folder / "order.json").write_text(child.model_dump_json())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "prebinder.builders.run_repo2docker", str(folder / "order.json")),
            cwd=folder,
            env=self._environment(folder, order.push),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        run = self._running[order.id] = _Run(order, folder, process)
        return run

    def _environment(self, folder: Path, push: bool) -> dict[str, str]:
        environment = self._engine.full_environment() | {
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=15",
            # A host that sends less than 1 kB/s for a minute is away.
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": "60",
        }
        if self._engine.kind == "docker":
            # Docker pushes in the same call that builds; its daemon keeps credentials from the build's steps.
            configuration = folder / "home" / ".docker"
            configuration.mkdir(parents=True, exist_ok=True)
            if push and self._registry.credentials:
                shutil.copyfile(self._registry.credentials, configuration / "config.json")
        return environment

    async def _see_image(self, order: BuildOrder) -> None:
        """The engine must know the image under its name; a pushed one is the registry's to tell."""
        if order.push:
            return
        try:
            await call(self._engine, "image", "inspect", str(order.image))
        except EngineError as error:
            message = f"The build ended well, but the engine has no image: {error}"
            raise BuildFailed(Failure(FailureKind.ENGINE, message)) from None

    async def _watch(self, run: _Run) -> None:
        """Stop the build at its limits of time and disk."""
        usage = Usage(run.folder, self._engine.storage, run.process.pid)
        loop = asyncio.get_running_loop()
        end = loop.time() + run.order.time_limit
        pause = 0.5
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(pause, left))
            begun = loop.time()
            try:
                used = await asyncio.to_thread(usage.measure)
            except MachineFull as error:
                await run.stop(Failure(FailureKind.ENGINE, str(error)))
                return
            except Exception:
                # Without its limits a build must not go on.
                log.exception("builder.usage", build=run.order.id)
                await run.stop(Failure(FailureKind.INTERNAL, "The build's use of the disk could not be measured."))
                return
            if used > run.order.disk_limit:
                message = f"The build used more than {_size(run.order.disk_limit)} of disk."
                await run.stop(Failure(FailureKind.DISK, message))
                return
            # Large trees take long to measure: never more than a tenth of the time.
            pause = min(max(0.5, 10 * (loop.time() - begun)), 30.0)
        await run.stop(Failure(FailureKind.TIMEOUT, f"The build took longer than {run.order.time_limit:.0f} s."))

    async def _finish(self, run: _Run) -> None:
        """Whatever happened: no process, no half-built container, no work folder."""
        killed = run.process.returncode is None or run.stopped is not None
        if run.process.returncode is None:
            await asyncio.to_thread(kill_tree, run.process.pid)
        if await end(run.process) not in _CLEAN:
            killed = True
            await asyncio.to_thread(_kill_marked, run.folder)
        await asyncio.to_thread(_remove, run.folder)
        self._running.pop(run.order.id, None)
        if killed or run.failed is not None:
            self._untidy = True
        await self._tidy()

    async def _tidy(self) -> None:
        """Remove containers of builds that ended in the middle, once no build runs that might own them."""
        if not self._untidy or self._running or self._engine.kind != "podman":
            return
        async with self._tidying:
            self._untidy = False
            with contextlib.suppress(EngineError):
                left = (
                    await call(self._engine, "ps", "--all", "--external", "--format", "{{.ID}} {{.Command}}")
                ).split("\n")
                builds = [line.split()[0] for line in left if line.split()[1:] == ["buildah"]]
                if builds and not self._running:
                    await call(self._engine, "rm", "--force", *builds)


async def _progress(run: _Run) -> AsyncIterator[Progress]:
    """What the process says, cleaned, a few lines at a time; stops it when it says too much."""
    assert run.process.stderr is not None
    phase, said, rest = Phase.FETCHING, 0, b""
    while chunk := await run.process.stderr.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LINE_LIMIT:
            lines, rest = [*lines, rest], b""
        together: list[str] = []
        for line in map(_parse, lines):
            if line.failed is not None:
                run.failed = line.failed
                continue
            new = _later(phase, _PHASES.get(line.phase or "", phase))
            if new is not phase:
                if together:
                    yield Progress(phase, "".join(together))
                phase, together = new, []
            if not line.message.strip():
                continue
            text = clean(line.message).rstrip("\n") + "\n"
            size = len(text.encode())
            if said + size > run.order.log_limit:
                message = f"The build wrote more than {_size(run.order.log_limit)} of log."
                await run.stop(Failure(FailureKind.LOG_FLOOD, message))
                if together:
                    yield Progress(phase, "".join(together))
                return
            said += size
            together.append(text)
            run.tail.extend(text.splitlines())
        if together:
            yield Progress(phase, "".join(together))


def _parse(line: bytes) -> ChildLine:
    try:
        return ChildLine.model_validate_json(line)
    except ValidationError:
        # Something that does not know of JSON wrote there (a warning of the interpreter, say).
        return ChildLine(message=line.decode("utf-8", "replace"))


def _later(now: Phase, new: Phase) -> Phase:
    """Phases never go back."""
    return new if _ORDER.index(new) > _ORDER.index(now) else now


def _kill_marked(folder: Path) -> None:
    """End what is left of a build whose process died: it has the work folder in its environment."""
    marker = f"TMPDIR={folder / 'tmp'}\0".encode()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if process.pid != os.getpid() and marker in Path(f"/proc/{process.pid}/environ").read_bytes():
                kill_tree(process.pid)


def _remove(folder: Path) -> None:
    """Delete a work folder. Never through a mount: what is still mounted there is left for the next time."""
    if not folder.exists():
        return
    if any(mount.point.is_relative_to(folder) for mount in mounts()):
        log.warning("builder.folder_mounted", folder=str(folder))
        return
    shutil.rmtree(folder, ignore_errors=True)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 10**9 else f"{number / 1e6:.1f} MB"
