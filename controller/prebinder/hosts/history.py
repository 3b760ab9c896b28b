"""Commits between two revisions from any Git server, without its help and without a full clone.

Only what the answer needs is fetched: a few commits deep, without files where the server can leave them out, into a
folder that is thrown away after the answer. So nothing grows, nothing goes stale, and a broken fetch spoils nothing.
A server that cannot (plain-file HTTP, or one that does not give commits by id) costs summaries, not builds.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from prebinder.hosts.base import Commit
from prebinder.hosts.git_command import GitFailed, checked_url, one_line, run_git
from prebinder.model.spec import is_revision

_FIRST_DEPTH = 8
"""Most pushes bring fewer commits than this."""
_LEFT_AFTER = 6 * 3600.0
"""Seconds after which a folder belongs to nobody any more: no answer takes so long."""


async def ask_commits(
    url: str,
    old: str | None,
    new: str,
    limit: int,
    *,
    scratch: Path,
    timeout: float,
    settings: Mapping[str, str] | None = None,
) -> tuple[Commit, ...]:
    """As `Host.commits_between` says. `timeout` bounds each step. Raises RepositoryNotFound or HostUnavailable."""
    if not is_revision(new) or not (old is None or is_revision(old)):
        raise ValueError("commits are asked for by full commit ids")
    url = checked_url(url)
    folder = await asyncio.to_thread(_new_folder, scratch)
    try:
        history = _History(url, folder, timeout, settings or {})
        return await history.between(old, new, limit) or (Commit(new, ""),)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _new_folder(scratch: Path) -> Path:
    """An empty folder; what a controller that was killed left here is cleared away."""
    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob("history-*"):
        with contextlib.suppress(FileNotFoundError):  # another question has just ended
            if time.time() - left.stat().st_mtime > _LEFT_AFTER:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="history-", dir=scratch))


class _History:
    """A throw-away bare repository, and what is asked of it."""

    def __init__(self, url: str, folder: Path, timeout: float, settings: Mapping[str, str]) -> None:
        self._url = url
        self._folder = folder
        self._timeout = timeout
        self._settings = {
            "i18n.logOutputEncoding": "UTF-8",
            "log.showSignature": "false",
            # A shallow, partial clone must answer from what it holds, not fetch more behind our back.
            "remote.origin.url": url,
            **settings,
        }

    async def between(self, old: str | None, new: str, limit: int) -> tuple[Commit, ...]:
        await self._git("init", "--quiet", "--bare", "--template=", "--object-format", _format(new), ".")
        if old is None or old == new or limit < 2:
            return await self._log(new, limit=1) if await self._fetch(1, new) else ()
        for depth in sorted({min(_FIRST_DEPTH, limit + 1), limit + 1}):
            if not await self._fetch(depth, new, old):
                # The old commit is gone, or the server gives only tips: look for it behind the new one. (Of more than
                # `limit` commits from such a server just the newest is told: they look like a force push.)
                if not await self._fetch(limit + 1, new):
                    return ()
                if not await self._has(old):
                    return await self._log(new, limit=1)
                return await self._log(new, f"^{old}", limit=limit)
            commits = await self._log(new, f"^{old}", limit=limit)
            if len(commits) >= limit or not await self._cut_off(commits):
                break
        return commits

    async def _fetch(self, depth: int, *revisions: str) -> bool:
        """Fetch commits; False when the server refuses."""
        common = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--filter=tree:0")
        try:
            await self._git("fetch", *common, f"--depth={depth}", "origin", *revisions)
        except GitFailed:
            return False
        return True

    async def _has(self, revision: str) -> bool:
        try:
            await self._git("cat-file", "-e", f"{revision}^{{commit}}")
        except GitFailed:
            return False
        return True

    async def _log(self, *revisions: str, limit: int) -> tuple[Commit, ...]:
        output = await self._git("log", "-z", "--date-order", f"--max-count={limit}", "--format=%H %s", *revisions)
        lines = output.decode("utf-8", "replace").split("\0")
        return tuple(Commit(line[:at], one_line(line[at:])) for line in lines if (at := line.find(" ")) > 0)

    async def _cut_off(self, commits: tuple[Commit, ...]) -> bool:
        """Whether the history ends in one of the commits because it was fetched no deeper."""
        shallow = await asyncio.to_thread(_lines, self._folder / "shallow")
        return any(commit.revision in shallow for commit in commits)

    async def _git(self, *arguments: str) -> bytes:
        return await run_git(
            arguments, url=self._url, timeout=self._timeout, folder=self._folder, settings=self._settings
        )


def _lines(path: Path) -> frozenset[str]:
    return frozenset(path.read_text().split()) if path.exists() else frozenset()


def _format(revision: str) -> str:
    return "sha1" if len(revision) == 40 else "sha256"
