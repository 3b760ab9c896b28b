"""Every check of this project, in the order in which they fail fastest; `make test` runs it.

    python tools/check.py                  all of it
    python tools/check.py --only-static    linters, types, layers
    python tools/check.py -- -k culled     further words go to the slow part's pytest

With PREBINDER_TEST_EVERYTHING=1 (as in CI) a part that is missing on the machine is a failure, not a skip.

One or two tests that failed are tried once more, alone: a cluster, an engine, a browser and hundreds of tests share a
small machine. What then passes is named at the end as unsteady, and each such name is a bug to look into
(CONTRIBUTING.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "artifacts" / "tests.xml"
BIN = Path(sys.executable).parent
STATIC = [
    ("ruff", ["ruff", "check", "."]),
    ("format", ["ruff", "format", "--check", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
]
SECOND_TRIES = 2
FAST = "not engine and not hub and not browser and not e2e and not kubernetes"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every check.")
    parser.add_argument("--only-static", action="store_true")
    parser.add_argument("pytest", nargs="*", help="further arguments for the slow part's pytest")
    arguments = parser.parse_args()
    steps = list(STATIC)
    if not arguments.only_static:
        # Unit tests wait more than they compute: more of them than processors.
        steps.append(("unit tests", pytest(FAST, "-n", "4")))
        steps.append(("real parts", pytest(f"not ({FAST})", *arguments.pytest)))
    failed, unsteady = [], []
    for name, command in steps:
        REPORT.unlink(missing_ok=True)
        ok = run(name, [*command, "--cache-clear"] if command[0] == "pytest" else command)
        names = failures()
        if not ok and 0 < len(names) <= SECOND_TRIES:
            ok = run(f"{name}, second try", [*command, "-n", "0", "--last-failed", "--last-failed-no-failures=none"])
            unsteady += names if ok else []
        if not ok:
            failed.append(name)
            if name != "format":
                break
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    for test in unsteady:
        print(
            f"UNSTEADY: {test} failed, then passed alone. Look into it: such a failure is a bug, often the product's."
        )
    print("all checks passed")
    return 0


def pytest(markers: str, *more: str) -> list[str]:
    """The words of one run of tests."""
    return ["pytest", "-q", "-m", markers, f"--junitxml={REPORT}", *more]


def run(name: str, command: list[str]) -> bool:
    """Run one step, its output shown."""
    print(f"── {name}", flush=True)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PREBINDER_ARTIFACTS": str(ROOT / "artifacts")}
    program, *rest = command
    done = subprocess.run([str(BIN / program), *rest], cwd=ROOT, env=environment, check=False, stdin=subprocess.DEVNULL)
    ok = done.returncode == 0
    print(f"── {name}: {'ok' if ok else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    return ok


def failures() -> list[str]:
    """The tests that failed, of the last run's report; none when it has no report (it broke off)."""
    if not REPORT.exists():
        return []
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in ET.parse(REPORT).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
