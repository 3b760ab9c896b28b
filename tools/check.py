"""Every check of this project, in the order in which they fail fastest; `make test` runs it.

    python tools/check.py                  all of it
    python tools/check.py --only-static    linters, types, layers
    python tools/check.py -- -k culled     further words go to the slow part's pytest

With PREBINDER_TEST_EVERYTHING=1 (as in CI) a part that is missing on the machine is a failure, not a skip.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STATIC = [
    ("ruff", ["ruff", "check", "."]),
    ("format", ["ruff", "format", "--check", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
]
FAST = "not engine and not hub and not browser and not e2e and not kubernetes"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every check.")
    parser.add_argument("--only-static", action="store_true")
    parser.add_argument("pytest", nargs="*", help="further arguments for the slow part's pytest")
    arguments = parser.parse_args()
    steps = list(STATIC)
    if not arguments.only_static:
        steps.append(("unit tests", ["pytest", "-q", "-n", "2", "-m", FAST]))
        steps.append(("real parts", ["pytest", "-q", "-m", f"not ({FAST})", *arguments.pytest]))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PREBINDER_ARTIFACTS": str(ROOT / "artifacts")}
    failed = []
    for name, (program, *rest) in steps:
        print(f"── {name}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [str(BIN / program), *rest], cwd=ROOT, env=environment, check=False, stdin=subprocess.DEVNULL
        )
        print(
            f"── {name}: {'ok' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True
        )
        if done.returncode != 0:
            failed.append(name)
            if (program, name) != ("ruff", "format"):
                break
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print("all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
