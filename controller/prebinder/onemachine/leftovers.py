"""Clearing away what an instance's podman left: processes, mounts, its bridge and that bridge's firewall rules.

Needed after `kill -9`, when nobody could stop anything in order, and as the last step of an orderly stop. What belongs
to an instance is told by its own folders and its own subnet alone, never by a program's name, so that another instance
or the person's own podman is never touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from prebinder.mounts import mounts


def mounts_below(folder: Path) -> list[Path]:
    """Mount points at or below `folder`, deepest first."""
    found = []
    with contextlib.suppress(OSError):
        found = [mount.point for mount in mounts() if mount.point.is_relative_to(folder)]
    return sorted(found, key=lambda p: len(p.parts), reverse=True)


def unmount_below(folder: Path) -> bool:
    """Unmount everything below `folder`; whether nothing is mounted there any more."""
    for point in mounts_below(folder):
        subprocess.run(["umount", "--lazy", str(point)], capture_output=True, timeout=20, check=False)
    return not mounts_below(folder)


def processes_of(storage: Path, marker: str) -> list[psutil.Process]:
    """Processes whose environment or command line holds `marker`, or whose root file system lies in `storage`.

    The first are the engine's own (podman, conmon, runc), the second what runs in containers.
    """
    spared = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        folder = Path(f"/proc/{process.pid}")
        with contextlib.suppress(OSError):
            text = (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
            if marker.encode() in text or _root_is_in(process.pid, storage):
                found.append(process)
    return found


def _root_is_in(process: int, storage: Path) -> bool:
    root = next((mount for mount in mounts(process) if mount.point == Path("/")), None)
    return root is not None and str(storage) in root.text


def end_processes(storage: Path, marker: str, deadline: float = 10.0) -> bool:
    """Kill what `processes_of` finds until nothing is left; False when something outlives `deadline` seconds."""
    end = time.monotonic() + deadline
    while running := processes_of(storage, marker):
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=1)
        if time.monotonic() > end:
            return False
    return True


def remove_interface(name: str) -> None:
    """Delete a network interface, if it is there."""
    if Path("/sys/class/net", name).exists():
        subprocess.run(["ip", "link", "delete", name], capture_output=True, timeout=20, check=False)


def remove_rules(subnet: str) -> None:
    """Delete the firewall rules and chains that netavark made for `subnet` (`10.1.2.0/24`)."""
    if shutil.which("iptables-save") is None:
        return
    for table in ("nat", "filter"):
        saved = subprocess.run(
            ["iptables-save", "-t", table], capture_output=True, timeout=20, check=False, text=True
        ).stdout
        for command in rule_removals(saved, subnet):
            subprocess.run(["iptables", "-w", "5", "-t", table, *command], capture_output=True, timeout=20, check=False)


def rule_removals(saved: str, subnet: str) -> list[list[str]]:
    """The iptables commands that undo, in one saved table, all rules for `subnet`. Pure.

    netavark makes a chain for each network (`NETAVARK-<hash>`) and for its published ports (`NETAVARK-DN-<hash>`), and
    rules in shared chains that jump to them. The shared chains stay: other networks use them.
    """
    prefix = subnet.rsplit(".", 1)[0] + "."
    rules = [line.split() for line in saved.splitlines() if line.startswith("-A ")]

    def names_subnet(rule: list[str]) -> bool:
        return any(word.startswith(prefix) for word in rule)

    own = {rule[1] for rule in rules if rule[1].startswith("NETAVARK-") and names_subnet(rule)}
    own -= {chain for chain in own if chain.startswith("NETAVARK-HOSTPORT")}
    removals = []
    for line in saved.splitlines():
        if not line.startswith("-A "):
            continue
        rule = line.split()
        target = rule[rule.index("-j") + 1] if "-j" in rule else ""
        if rule[1] not in own and (names_subnet(rule) or target in own):
            removals.append(["-D", *_words(line)[1:]])
    for chain in sorted(own):
        removals += [["-F", chain], ["-X", chain]]
    return removals


def _words(line: str) -> list[str]:
    """A saved rule as arguments; iptables-save quotes comments."""
    return [quoted or bare for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)]
