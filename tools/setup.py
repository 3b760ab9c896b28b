"""Makes this checkout ready: a virtual environment with exactly the locked packages, and Prebinder in it.

    python3 tools/setup.py            what `make up` needs
    python3 tools/setup.py --dev      what `make test` and `make bench` need, system packages included

Needs Python 3.11 or newer and nothing else (uv is used when it is there). Safe to call again, and from two commands at
once; does nothing, in a few milliseconds, when all is as it should be. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SUPPORTED = ((3, 11), (3, 13))

# Debian packages that only the tests and benchmarks need, by a command or file that shows that they are there.
TEST_PACKAGES = {
    "podman": "podman",
    "runc": "runc",
    "iptables": "iptables",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "newuidmap": "uidmap",
    "mmdebstrap": "mmdebstrap",
    "docker-registry": "docker-registry",
    "chromium": "chromium",
    "wrk": "wrk",
}


class SetupError(Exception):
    """One or two lines that say what failed and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make this checkout ready to run.")
    parser.add_argument("--dev", action="store_true", help="also what the tests and benchmarks need")
    arguments = parser.parse_args()
    try:
        if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
            return rerun_with_another_python()
        with (ROOT / ".setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if arguments.dev:
                install_system_packages()
            install_python_packages("dev" if arguments.dev else "run")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def rerun_with_another_python() -> int:
    """Take a newer Python from PATH when `python3` is too old (or too new)."""
    for minor in range(SUPPORTED[1][1], SUPPORTED[0][1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", "import ssl"], check=False, capture_output=True).returncode == 0:
            return subprocess.run([found, *sys.argv], check=False).returncode
    have = ".".join(map(str, sys.version_info[:2]))
    raise SetupError(f"Python {have} is not supported. Install Python 3.11, 3.12 or 3.13 and run the command again.")


def install_system_packages() -> None:
    missing = sorted(
        package
        for shown_by, package in TEST_PACKAGES.items()
        if not (Path(shown_by).exists() if shown_by.startswith("/") else shutil.which(shown_by))
    )
    if not missing:
        return
    line = f"apt-get install -y --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        say(f"some tests will be skipped, because packages are missing; to run them all: sudo {line}")
        return
    say(f"installing {', '.join(missing)} …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], environment)
    run([*line.split(), "-qq"], environment)


def install_python_packages(extra: str) -> None:
    requirements = ROOT / "requirements" / f"{extra}.txt"
    key = hashlib.sha256(
        requirements.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()
    ).hexdigest()
    stamp = VENV / f".{extra}-{key[:16]}"
    if stamp.exists() and PYTHON.exists():
        return
    uv = shutil.which("uv")
    if not usable(PYTHON):
        say("creating the Python environment …")
        shutil.rmtree(VENV, ignore_errors=True)
        if uv:
            run([uv, "venv", "--quiet", "--python", sys.executable, str(VENV)])
        else:
            create_venv()
    say("installing the locked Python packages …")
    if uv:
        install = [uv, "pip", "install", "--quiet", "--python", str(PYTHON)]
    else:
        install = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, "--require-hashes", "--requirement", str(requirements)])
    run([*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    stamp.touch()


def usable(python: Path) -> bool:
    return python.exists() and subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0


def create_venv() -> None:
    """Debian and Ubuntu ship `venv` without `ensurepip` unless python3-venv is installed."""
    if subprocess.run([sys.executable, "-c", "import ensurepip"], check=False, capture_output=True).returncode != 0:
        package = f"python3.{sys.version_info.minor}-venv"
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise SetupError(f"this Python has no ensurepip. Run: sudo apt-get install -y {package}")
        say(f"installing {package} …")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], environment)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], environment)
    run([sys.executable, "-m", "venv", str(VENV)])


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command quietly; its output is shown when it fails."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=1800,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(f"{command[0]} did not end within 30 minutes: {' '.join(command)}") from None
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise SetupError(f"{' '.join(command[:6])} … failed with exit code {done.returncode}:\n{tail}")


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
