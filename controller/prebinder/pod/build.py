"""The container that builds: repo2docker with buildah, from the repository's content, without any secret.

Guarantees, as far as the repository's own steps leave this container alone:
- It ends at its limits of time and log; processes are bounded. (Memory and disk are the cluster's to bound.)
- An image is left in the shared folder when the whole build went well, and only then. Layers that our registry has
  already are left out: an empty file stands for each.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prebinder.builders.child import ChildFailure, ChildOrder, Step
from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.wire import PRELOADED_BASE, PodOrder
from prebinder.builders.lines import run
from prebinder.pod.fetch import BASE, split
from prebinder.pod.layout import REF_NAME, blob_file, diff_ids_of, parts_of
from prebinder.pod.say import say
from prebinder.pod.store import preloaded, steps

FINAL = "final"
LAYOUT = "layout"
STEPS = "steps"
_CHUNK = 64 * 1024
# Lines are JSON: longer than what they say.
_JSON_OVERHEAD = 2
_CALL_SECONDS = 600
_TERM_SECONDS = 5
_NOTHING_SECRET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "GIT_CONFIG_GLOBAL": os.devnull,
    # A checkout that is thrown away need not reach the disk; waiting for it can take longer than the build.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.fsync",
    "GIT_CONFIG_VALUE_0": "none",
    "GIT_ALLOW_PROTOCOL": "http:https:git:ssh",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=15",
    # A host that sends less than 1 kB/s for a minute is away.
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "PYTHONUNBUFFERED": "1",
}


def main(order: PodOrder) -> int:
    """Build; the exit code (`wire.py`)."""
    if order.storage == "overlay" and root_of_the_node(Path("/proc/self/uid_map").read_text()):
        say("building", "The cluster gave this build no user namespace: nothing is run as the node's root.")
        return wire.EXIT_ROOT
    work = Path(wire.WORK)
    os.environ.update(prepare(order, work))
    resource.setrlimit(resource.RLIMIT_NPROC, (order.processes, order.processes))
    restored = restore(order, Path(wire.FETCHED))
    code = build(order, work, restored.base_image or order.base_image)
    if code == 0:
        try:
            export(order, Path(wire.IMAGE), restored.layers)
        except (subprocess.SubprocessError, OSError) as error:
            failed = ChildFailure(step=Step.BUILD, message=f"The image could not be taken out: {error}")
            _write(f"Error: taking out the image: {error}", failed)
            return 1
    return code


def root_of_the_node(uid_map: str) -> bool:
    """Whether user 0 here is user 0 of the node (user_namespaces(7): inside, outside, count)."""
    lines = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    return any(inside == 0 and outside == 0 for inside, outside, _ in lines)


def prepare(order: PodOrder, work: Path) -> dict[str, str]:
    """Folders and configuration below `work`; the environment that makes buildah, Git and pip use them."""
    for name in ("home", "tmp"):
        (work / name).mkdir(parents=True, exist_ok=True)
    registries = work / "registries.conf"
    registries.write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        f'[[registry]]\nlocation = "{order.registry}"\ninsecure = {"true" if order.insecure else "false"}\n'
    )
    storage = {}
    if order.storage == "vfs":
        (work / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{wire.STORAGE}/storage"\nrunroot = "{wire.STORAGE}/run"\n'
        )
        storage = {"CONTAINERS_STORAGE_CONF": str(work / "storage.conf")}
    return {
        **storage,
        **_NOTHING_SECRET,
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "CONTAINERS_REGISTRIES_CONF": str(registries),
    }


@dataclass(frozen=True, slots=True)
class Restored:
    """What stands in buildah's storage before the build."""

    base_image: str | None
    """Under which name the base image is found; None when it has to be pulled, if any is asked for."""
    layers: frozenset[str]
    """Layers, by the digest of their tar, that the registry has."""


def restore(order: PodOrder, fetched: Path) -> Restored:
    """Put what was fetched into buildah's storage."""
    entries: dict[str, str] = {}
    if (fetched / "index.json").exists():
        listed = json.loads((fetched / "index.json").read_text())["manifests"]
        entries = {entry["annotations"][REF_NAME]: entry["digest"] for entry in listed}
    held = preloaded() if order.storage == "overlay" else None
    base, known = None, set[str]()
    if order.our_base and BASE in entries:
        # A digest is no tag, and our own store knows the image by another; what is asked for was compared before.
        base = order.our_base if "@" not in order.our_base else f"{split(order.our_base)[0]}:pinned"
        config = parts_of(*_read(fetched, entries[BASE])).config
        image = PRELOADED_BASE if held is not None and config == held else _pull(fetched, BASE)
        known.update(diff_ids_of(config))
        subprocess.run(["buildah", "tag", image, base], check=True, timeout=_CALL_SECONDS)
    elif order.base_image is None and order.build_pack == "pip" and held is not None:
        base = PRELOADED_BASE
    for name, digest in entries.items():
        if name == BASE:
            continue
        try:
            _pull(fetched, name)
        except subprocess.CalledProcessError as error:
            say("fetching", f"The layers of an earlier build cannot be used: {(error.stderr or '').strip()[-300:]}")
            break
        known.update(parts_of(*_read(fetched, digest)).diff_ids)
    return Restored(base, frozenset(known))


def _read(fetched: Path, digest: str) -> tuple[bytes, Callable[[str], bytes]]:
    """A manifest that was fetched, and how to read what it names."""
    return blob_file(fetched, digest).read_bytes(), lambda named: blob_file(fetched, named).read_bytes()


def _pull(fetched: Path, name: str) -> str:
    """Take an image out of what was fetched; its id."""
    command = ["buildah", "pull", "--quiet", f"oci:{fetched}:{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_SECONDS, check=True)
    return done.stdout.split()[-1]


def build(order: PodOrder, work: Path, base_image: str | None) -> int:
    """Run repo2docker in a process of its own; its exit code, or one of ours for a limit."""
    child = ChildOrder(
        parent=os.getpid(),
        clone_url=order.clone_url,
        revision=order.revision,
        image=order.image,
        engine="buildah",
        build_pack=order.build_pack,
        base_image=base_image,
        push=False,
        memory_limit=order.memory_limit,
        auth_file=None,
        tls_verify=not order.insecure,
        all_providers=order.all_providers,
        certificates=bundle if (bundle := Path(wire.CERTIFICATES) / "ca-certificates.crt").exists() else None,
        checkout=work / "checkout",
    )
    (work / "order.json").write_text(child.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-m", "prebinder.builders.run_repo2docker", str(work / "order.json")],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        flooded = threading.Event()
        reader = threading.Thread(
            target=_pass_on, args=(process, process.stderr, order.log_limit * _JSON_OVERHEAD, flooded), daemon=True
        )
        reader.start()
        try:
            code = process.wait(order.time_limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return wire.EXIT_TIMEOUT
        reader.join(_TERM_SECONDS)
        return wire.EXIT_LOG if flooded.is_set() else code


def _pass_on(process: subprocess.Popen[bytes], stream: IO[bytes], limit: int, flooded: threading.Event) -> None:
    said = 0
    while chunk := os.read(stream.fileno(), _CHUNK):
        said += len(chunk)
        if said > limit:
            flooded.set()
            _end(process)
            return
        os.write(sys.stderr.fileno(), chunk)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End repo2docker, which ends everything below it."""
    process.terminate()
    try:
        process.wait(_TERM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def export(order: PodOrder, folder: Path, reused: frozenset[str]) -> None:
    """Leave the image, and the steps that led to it, for the container that pushes."""
    layout = folder / LAYOUT
    (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for digest in reused:
        # buildah takes a blob that is there for written. The push knows these layers and asks for no content.
        blob_file(layout, digest).touch()
    for line in run(["buildah", "push", "--quiet", order.image, f"oci:{layout}:{FINAL}"]):
        say("building", line)
    if order.write_cache:
        (folder / STEPS).mkdir(exist_ok=True)
        for number, config in enumerate(_steps(order.image)):
            (folder / STEPS / f"{number}.json").write_bytes(config)
    # Whoever pushes is another user.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _steps(image: str) -> list[bytes]:
    """The configurations of the images on the way to `image`."""
    inspected = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", image]
    found = subprocess.run(inspected, capture_output=True, text=True, timeout=_CALL_SECONDS, check=True).stdout.strip()
    asked = subprocess.run(["buildah", "info"], capture_output=True, timeout=_CALL_SECONDS, check=True).stdout
    storage = json.loads(asked)["store"]
    return steps(Path(storage["GraphRoot"]) / f"{storage['GraphDriverName']}-images", found)


def _write(message: str, failed: ChildFailure) -> None:
    say("building", message)
    sys.stderr.write(json.dumps({"failed": failed.model_dump(mode="json")}) + "\n")
    sys.stderr.flush()
