"""`python -m benchmarks`: run every measurement, print what was measured, and write RESULTS.md beside this file.

`python -m benchmarks clicks` runs one. Numbers depend on the machine, which is written with them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.report import Row

RESULTS = Path(__file__).with_name("RESULTS.md")
MEASUREMENTS = {
    "one_machine": "One machine: push, build, click, memory",
    "clicks": "The launch endpoint alone, against a stand-in Hub that answers at once",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Prebinder.")
    parser.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], help="which; all by default")
    names: Sequence[str] = parser.parse_args().names or list(MEASUREMENTS)
    sections = []
    for name in names:
        title = MEASUREMENTS[name]
        print(f"── {title}", flush=True)
        measure: Callable[[], list[Row]] = importlib.import_module(f"benchmarks.{name}").measure
        rows = measure()
        for row in rows:
            print(f"   {row.what}: {row.value}{f'   (goal: {row.goal})' if row.goal else ''}", flush=True)
        table = "\n".join(f"| {row.what} | {row.value} | {row.goal} |" for row in rows)
        sections.append(
            f"## {title}\n\n`python -m benchmarks {name}`\n\n| what | measured | goal |\n|---|---|---|\n{table}\n"
        )
    if set(names) == set(MEASUREMENTS):
        head = f"# Results\n\nMeasured by `make bench` on {datetime.now(UTC):%Y-%m-%d}.\n\n{describe_machine()}\n"
        RESULTS.write_text(head + "\n" + "\n".join(sections))
        print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
