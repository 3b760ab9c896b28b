"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def describe_machine() -> str:
    """A few lines of Markdown: processor, memory, system, versions."""
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        f"- {os.cpu_count()} cores, {_processor()}, {memory:.0f} GiB of memory",
        f"- {_system()}, Linux {platform.release()}",
        f"- Python {platform.python_version()}; {_first_line('podman', '--version')}",
    ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return f"no {command[0]}"
