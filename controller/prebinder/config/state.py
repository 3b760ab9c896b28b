"""The state folder: where a running Prebinder keeps what must outlive it.

All of it can be made anew but `secrets/`, `ledger.sqlite` (history) and `git/` (what people pushed to the demo).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

# A Unix socket's path is limited to 108 bytes with its end (unix(7)).
_LONGEST_SOCKET = 100
# Bytes; a first build takes several times as much.
_LEAST_SPACE = 200 * 10**6


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths below `root` (absolute)."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def logs(self) -> Path:
        """Logs of builds."""
        return self.root / "builds"

    @property
    def work(self) -> Path:
        """Checkouts of running builds."""
        return self.root / "work"

    @property
    def site(self) -> Path:
        """Generations of the static site."""
        return self.root / "site"

    @property
    def endpoint(self) -> Path:
        """The launch endpoint's last copy of the catalogue."""
        return self.root / "endpoint"

    @property
    def git_cache(self) -> Path:
        """Commit histories fetched from plain Git hosts."""
        return self.root / "git-cache"

    @property
    def demo(self) -> Path:
        """The demo's bare Git repositories."""
        return self.root / "git"

    @property
    def hub(self) -> Path:
        """JupyterHub's database, configuration and cookie secret."""
        return self.root / "hub"

    @property
    def log(self) -> Path:
        """Logs of Prebinder's own processes."""
        return self.root / "log"

    @property
    def run(self) -> Path:
        """Sockets and locks. Elsewhere than below `root` when that path is too long for a Unix socket."""
        here = self.root / "run"
        if len(os.fsencode(here / "controller.sock")) <= _LONGEST_SOCKET:
            return here
        key = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"prebinder-{os.getuid()}-{key}"

    @property
    def controller_socket(self) -> Path:
        return self.run / "controller.sock"

    def create(self) -> None:
        """Make the folders that hold private things, readable by their owner only. Safe to call again.

        Raises OSError, which `describe` words.
        """
        for folder in (self.root, self.run, self.log, self.root / "secrets"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.run, self.root / "secrets"):
            if folder.stat().st_uid != os.getuid():
                # The place for sockets may be shared: what somebody else put there is not ours to use.
                raise OSError(errno.EPERM, "Belongs to somebody else", str(folder))
            folder.chmod(0o700)

    def see_space(self) -> None:
        """Raises OSError (ENOSPC) when there is hardly any room to build: said now, not by what meets it first."""
        if shutil.disk_usage(self.root).free < _LEAST_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.root))

    def secret(self, name: str) -> str:
        """A random secret (256 bits, hex) that is made once and kept in a file of mode 600."""
        path = self.root / "secrets" / name
        try:
            if text := path.read_text().strip():
                return text
        except FileNotFoundError:
            pass
        text = secrets.token_hex(32)
        half = path.with_suffix(".new")
        half.unlink(missing_ok=True)
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
        half.replace(path)
        return text


def describe(error: OSError, root: Path) -> str:
    """Why the state folder `root` cannot be used, and what to do, in one line for a person."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {root} is full. Free space on it, or choose another folder with --state."
    where = f" ({error.filename})" if error.filename and Path(str(error.filename)) != root else ""
    return f"The state folder {root} cannot be used: {reason}{where}. Choose another with --state."
