"""The demo: a real Git repository of examples on this machine, whose pushes ask for builds.

Guarantees:
- The same commits, ids included, on every machine.
- What people pushed is kept: a repository that is there and whole is only given its settings and its hook anew (ports,
  secret and Python may have changed since the last start).
- A repository appears whole or not at all. What a killed start left half-made is cleared away; one that is there but
  broken is put aside under another name, never deleted.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prebinder.model.failure import PrebinderError
from prebinder.model.spec import Repository, git_url
from prebinder.onemachine import post_receive

NAME = "examples.git"
_MAKING = ".making-"
_TIME_LIMIT = 60.0
_AUTHOR = "Prebinder <examples@prebinder.invalid>"

_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
[http]
\treceivepack = true
[uploadpack]
\tallowFilter = true
\tallowAnySHA1InWant = true
[gc]
\tautoDetach = false
"""


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo's repository: what is registered, what people clone, and where it is."""

    repository: Repository
    clone_url: str
    path: Path
    created: bool
    """Whether this start made it."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One commit: where it goes, when, what it says, and the files that it adds (name in it, name in the package)."""

    ref: str
    at: int
    message: str
    files: Mapping[str, str]
    start: str | None = None
    tag: str | None = None


# The times are seconds since 1970, an hour apart; they are part of the commits' ids.
_STEPS = (
    _Step(
        "refs/heads/main", 1_790_000_000, "Name what the examples need", {"requirements.txt": "main/requirements.txt"}
    ),
    _Step("refs/heads/main", 1_790_003_600, "Draw the Lorenz attractor", {"index.ipynb": "main/index.ipynb"}),
    _Step(
        "refs/heads/main",
        1_790_007_200,
        "Draw Julia sets, and say what there is",
        {"julia.ipynb": "main/julia.ipynb", "README.md": "main/README.md"},
        tag="refs/tags/v1.0",
    ),
    _Step(
        "refs/heads/teach/week-1",
        1_790_010_800,
        "Week 1: how far does a drunkard get?",
        {"week-1.ipynb": "week-1/week-1.ipynb"},
        start="refs/tags/v1.0",
    ),
    _Step("refs/heads/main", 1_790_014_400, "Leave out what Jupyter leaves behind", {".gitignore": "main/gitignore"}),
)


def create_demo(folder: Path, base_url: str, hook_url: str, secret: str, python: Path) -> Demo:
    """Make the repository `examples.git` in `folder`, or take the one that is there.

    `base_url` is where `folder` is served, `hook_url` where plain Git's webhook is taken, `secret` signs it, `python`
    runs the hook. Blocks for some ten milliseconds. Raises PrebinderError when Git or the disk fails.
    """
    clone_url = f"{base_url.rstrip('/')}/{NAME}"
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half_made in folder.glob(f"{_MAKING}*"):
            shutil.rmtree(half_made)
        if path.exists() and not _is_whole(path):
            path.rename(_free_name(folder))
        created = not path.exists()
        if created:
            _make(path)
        for lock in _stale_locks(path):
            lock.unlink(missing_ok=True)
        _settle(path, {"clone_url": clone_url, "hook_url": hook_url, "secret": secret}, python)
    except (OSError, subprocess.SubprocessError) as error:
        raise PrebinderError(f"The demo's repository {path} cannot be made: {_reason(error)}.") from None
    return Demo(git_url(clone_url), clone_url, path, created)


def fast_import_stream() -> bytes:
    """The demo's history as git-fast-import(1) reads it."""
    content = importlib.resources.files("prebinder.onemachine") / "demo_content"
    stream = bytearray()
    for step in _STEPS:
        if step.start is not None:
            stream += f"reset {step.ref}\nfrom {step.start}\n\n".encode()
        who = f"{_AUTHOR} {step.at} +0000"
        stream += f"commit {step.ref}\nauthor {who}\ncommitter {who}\n".encode() + _data(step.message.encode() + b"\n")
        for name, source in step.files.items():
            stream += f"M 100644 inline {name}\n".encode() + _data(content.joinpath(source).read_bytes())
        if step.tag is not None:
            stream += f"reset {step.tag}\nfrom {step.ref}\n\n".encode()
    return bytes(stream) + b"done\n"


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def _make(path: Path) -> None:
    making = Path(tempfile.mkdtemp(prefix=_MAKING, dir=path.parent))
    making.chmod(0o755)
    _git(making, "init", "--quiet", "--bare", "--template=", "--object-format=sha1", "--initial-branch=main", ".")
    _git(making, "fast-import", "--quiet", "--done", stdin=fast_import_stream())
    making.rename(path)


def _is_whole(path: Path) -> bool:
    """Whether Git takes it for a repository whose branches stand at histories that are all there."""
    try:
        (path / "config").write_text(_CONFIG)
        (path / "objects").mkdir(exist_ok=True)
        listed = _git(path, "for-each-ref", "--format=%(objectname)")
        if listed:
            _git(path, "rev-list", "--objects", "--quiet", "--stdin", stdin=listed)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


def _settle(path: Path, settings: Mapping[str, str], python: Path) -> None:
    """Write what belongs to this start: configuration, the hook, and the hook's settings."""
    (path / "hooks").mkdir(exist_ok=True)
    settings_path = path / "prebinder-hook.json"
    script = Path(post_receive.__file__).absolute()
    command = shlex.join([str(python), "-I", "-S", str(script), str(settings_path.absolute())])
    guard = f"[ -x {shlex.quote(str(python))} ] || exit 0"
    hook = f"#!/bin/sh\n# Prebinder writes this anew at every start.\n{guard}\nexec {command}\n"
    _write(path / "config", _CONFIG, 0o644)
    _write(settings_path, json.dumps(settings), 0o600)
    _write(path / "hooks" / "post-receive", hook, 0o755)


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says."""
    half = path.with_name(f"{path.name}.new")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    half.chmod(mode)
    half.replace(path)


def _stale_locks(path: Path) -> list[Path]:
    """Locks of a Git that was killed: nobody else runs Git here when Prebinder starts, so none is held."""
    return [*path.glob("*.lock"), *(path / "refs").rglob("*.lock")]


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder / f"examples-broken-{number}.git").exists():
        number += 1
    return aside


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_DIR": str(folder.absolute()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=_TIME_LIMIT,
        check=True,
    )
    return done.stdout


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines: list[str] = error.stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"
    if isinstance(error, OSError):
        return f"{error.strerror} ({error.filename})"
    return f"git did not end within {_TIME_LIMIT:g} s"
