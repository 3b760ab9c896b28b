"""The container that builds: repo2docker with buildah, from the repository's content, without any secret.

Guarantees, as far as the repository's own steps leave this container alone:
- It ends at its limits of time and log; processes are bounded. (Memory and disk are the cluster's to bound.)
- An image is left in the shared folder when the whole build went well, and only then. Layers that our registry has
  already are left out: an empty file stands for each.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from prebinder.builders.child import ChildFailure, ChildOrder, Step
from prebinder.builders.kubernetes import wire
from prebinder.builders.kubernetes.wire import PodOrder
from prebinder.builders.lines import run
from prebinder.pod.fetch import BASE, split
from prebinder.pod.layout import REF_NAME, BadLayout, blob_file, diff_ids_of, parts_of
from prebinder.pod.say import say

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
    work = Path(wire.WORK)
    os.environ.update(prepare(order, work))
    resource.setrlimit(resource.RLIMIT_NPROC, (order.processes, order.processes))
    reused = restore(order, Path(wire.FETCHED))
    code = build(order, work)
    if code == 0:
        try:
            export(order, Path(wire.IMAGE), reused)
        except (subprocess.SubprocessError, OSError) as error:
            failed = ChildFailure(step=Step.BUILD, message=f"The image could not be taken out: {error}")
            _write(f"Error: taking out the image: {error}", failed)
            return 1
    return code


def prepare(order: PodOrder, work: Path) -> dict[str, str]:
    """Folders and configuration below `work`; the environment that makes buildah, Git and pip use them."""
    for name in ("home", "tmp"):
        (work / name).mkdir(parents=True, exist_ok=True)
    registries = work / "registries.conf"
    registries.write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        f'[[registry]]\nlocation = "{order.registry}"\ninsecure = {"true" if order.insecure else "false"}\n'
    )
    return {
        **_NOTHING_SECRET,
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "CONTAINERS_REGISTRIES_CONF": str(registries),
    }


def restore(order: PodOrder, fetched: Path) -> frozenset[str]:
    """Put what was fetched into buildah's storage; the digests (of the tars) of the layers that the registry has."""
    if not (fetched / "index.json").exists():
        return frozenset()
    known: set[str] = set()
    for entry in json.loads((fetched / "index.json").read_text())["manifests"]:
        name = entry["annotations"][REF_NAME]
        pulled = subprocess.run(
            ["buildah", "pull", "--quiet", f"oci:{fetched}:{name}"],
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
            check=False,
        )
        if pulled.returncode:
            say("fetching", f"What was fetched cannot be used: {pulled.stderr.strip()[-300:]}")
            continue
        if name == BASE and order.base_image:
            image = pulled.stdout.split()[-1]
            # A digest is no tag; buildah finds it by the image's own.
            tag = split(order.base_image)[0] if "@" in order.base_image else order.base_image
            subprocess.run(["buildah", "tag", image, tag], check=True, timeout=_CALL_SECONDS)
        manifest = blob_file(fetched, entry["digest"]).read_bytes()
        known.update(parts_of(manifest, lambda digest: blob_file(fetched, digest).read_bytes()).diff_ids)
    return frozenset(known)


def build(order: PodOrder, work: Path) -> int:
    """Run repo2docker in a process of its own; its exit code, or one of ours for a limit."""
    child = ChildOrder(
        parent=os.getpid(),
        clone_url=order.clone_url,
        revision=order.revision,
        image=order.image,
        engine="buildah",
        build_pack=order.build_pack,
        base_image=order.base_image,
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
        for number, config in enumerate(steps(order.image)):
            (folder / STEPS / f"{number}.json").write_bytes(config)
    # Whoever pushes is another user.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def steps(image: str) -> list[bytes]:
    """The configurations of the images that `--layers` kept on the way to `image`, in their order.

    Read from the storage (containers/storage's `<driver>-images/<id>/=<base64 of the name>`): asking buildah for each
    takes seconds.
    """
    found = subprocess.run(
        ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", image],
        capture_output=True,
        text=True,
        timeout=_CALL_SECONDS,
        check=True,
    ).stdout.strip()
    information = json.loads(
        subprocess.run(["buildah", "info"], capture_output=True, timeout=_CALL_SECONDS, check=True).stdout
    )["store"]
    images = Path(information["GraphRoot"]) / f"{information['GraphDriverName']}-images"
    configs = {entry.name: config for entry in images.iterdir() if (config := _config(entry)) is not None}
    final = configs.pop(found, None)
    if final is None:
        return []
    led = [config for config in configs.values() if _leads_to(config, final)]
    return sorted(led, key=lambda config: len(_history(config)))


def _config(image: Path) -> bytes | None:
    name = base64.b64encode(f"sha256:{image.name}".encode()).decode()
    try:
        return (image / f"={name}").read_bytes()
    except OSError:
        return None


def _leads_to(config: bytes, final: bytes) -> bool:
    """Whether one image's history is the beginning of another's."""
    try:
        layers, all_layers = diff_ids_of(config), diff_ids_of(final)
    except BadLayout:
        return False
    history, whole = _history(config), _history(final)
    return all_layers[: len(layers)] == layers and 0 < len(history) < len(whole) and whole[: len(history)] == history


def _history(config: bytes) -> list[Any]:
    history = json.loads(config).get("history") or []
    return history if isinstance(history, list) else []


def _write(message: str, failed: ChildFailure) -> None:
    say("building", message)
    sys.stderr.write(json.dumps({"failed": failed.model_dump(mode="json")}) + "\n")
    sys.stderr.flush()
