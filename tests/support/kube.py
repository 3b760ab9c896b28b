"""A real Kubernetes cluster for tests, and a namespace of one's own in it.

from tests.support.kube import cluster, namespace            # fixtures: session, module

pytestmark = pytest.mark.kubernetes

def test_it(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifests, namespace)                      # anything that `kubectl apply` takes, as Python values
    cluster.get("pods", namespace)                           # the items
    cluster.load_image(archive)                              # a docker-archive, onto the nodes
    cluster.kubectl("-n", namespace, "delete", "pod", name)

Which cluster: the one that `KUBECONFIG` names, else the one that the command in `KUBE_UP` starts (`$KUBE_UP up`, its
environment from `$KUBE_UP env`, `$KUBE_UP down` at the end). Without either the tests are skipped, saying so.
Further, optional: `KUBE_REGISTRY` (host:port of a plain HTTP registry that nodes and pods reach, to which images are
pushed), for clusters without one `KUBE_LOAD` (a command that takes an image archive onto the nodes; `$KUBE_UP load`
where `KUBE_UP` is set), and `KUBE_NAMESPACES` (how the names of the tests' namespaces begin; `pb-test-` by default).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import pytest

_UP_SECONDS = 180
_CALL_SECONDS = 120
_EXPORT = re.compile(r"^(?:export\s+)?(?P<name>[A-Z_]+)=(?P<value>.*)$")
_LABEL = "prebinder.test/owner"

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and the command lines that reach it."""

    kubeconfig: Path
    registry: str | None
    """host:port of a plain HTTP registry, as nodes, pods and this machine reach it."""
    environment: Mapping[str, str]
    """For `kubectl` and `helm`."""
    load_command: tuple[str, ...] = ()

    @property
    def this_machine(self) -> str:
        """The address at which pods reach this machine: the one from which this machine reaches the cluster."""
        target = self.registry or self.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
        host = urlsplit(target if "//" in target else f"//{target}").hostname
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((host, 9))  # nothing is sent
            return str(way.getsockname()[0])

    def tool(self, name: str) -> str:
        """Path of `kubectl`, `helm`, …; the test is skipped when there is none."""
        found = shutil.which(name, path=self.environment["PATH"])
        if found is None:
            _absent(f"{name} is not installed")
        return found

    def run(self, *command: str | Path, stdin: str | None = None, check: bool = True) -> str:
        """Run a tool against the cluster; its standard output. Raises AssertionError with what it wrote."""
        program, *rest = map(str, command)
        done = subprocess.run(
            [self.tool(program), *rest],
            env=dict(self.environment),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{program} {' '.join(rest)[:200]}: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout

    def kubectl(self, *arguments: str | Path, stdin: str | None = None, check: bool = True) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, check=check)

    def apply(self, manifests: Sequence[Mapping[str, Any]] | Mapping[str, Any], namespace: str) -> None:
        """Create or change objects."""
        items = [manifests] if isinstance(manifests, Mapping) else list(manifests)
        bundle = {"apiVersion": "v1", "kind": "List", "items": items}
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(bundle))

    def get(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, as the API has them."""
        found: list[dict[str, Any]] = json.loads(
            self.kubectl("-n", namespace, "get", kind, "-o", "json", *(["-l", selector] if selector else []))
        )["items"]
        return found

    def load_image(self, archive: Path) -> str:
        """Make the image of a docker-archive (`name:tag` in it) known to the nodes; the name to use in pods."""
        with tarfile.open(archive) as tar:
            manifest = tar.extractfile("manifest.json")
            assert manifest is not None, f"{archive} is not a docker-archive"
            name = str(json.load(manifest)[0]["RepoTags"][0])
        # Rather from the registry: a node that has an image under another name of it may not take it for its own.
        if self.registry is None and self.load_command:
            done = subprocess.run(
                [*self.load_command, str(archive)], capture_output=True, text=True, timeout=_UP_SECONDS, check=False
            )
            assert done.returncode == 0, f"the image could not be loaded: {done.stderr.strip()[-500:]}"
            return name
        if self.registry is None:
            _absent("neither KUBE_LOAD nor KUBE_REGISTRY says how images come onto the cluster's nodes")
        pushed = f"{self.registry}/{name.partition('/')[2] or name}"
        self.run(
            "skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker-archive:{archive}", f"docker://{pushed}"
        )
        return pushed

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
        """What `look` returns once it is not None or False. Raises AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < end, f"{what} did not come within {seconds:g} s"
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def fresh_namespace(cluster: Cluster, name: str) -> Iterator[str]:
    """A namespace for as long as the block runs; everything in it goes with it."""
    prefix = os.environ.get("KUBE_NAMESPACES", "pb-test-")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30]
    full = f"{prefix}{slug}-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", full)
    cluster.kubectl("label", "namespace", full, f"{_LABEL}={os.getpid()}")
    try:
        yield full
    finally:
        cluster.kubectl("delete", "namespace", full, "--wait=false", check=False)
        # Pods that ignore SIGTERM must not outlive the test.
        cluster.kubectl("-n", full, "delete", "pods", "--all", "--grace-period=1", "--wait=false", check=False)
        cluster.kubectl("wait", "--for=delete", f"namespace/{full}", "--timeout=90s", check=False)


@contextlib.contextmanager
def reached() -> Iterator[Cluster]:
    """The cluster that the environment names (see the module), started if need be, as long as the block runs."""
    if os.environ.get("KUBECONFIG"):
        yield _cluster(os.environ, _words("KUBE_LOAD"))
    elif up := _words("KUBE_UP"):
        with _started(up) as environment:
            yield _cluster(environment, _words("KUBE_LOAD") or (*up, "load"))
    else:
        _absent("no cluster: KUBECONFIG is not set, and KUBE_UP names no command that starts one")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster; see the module."""
    with reached() as found:
        yield found


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace for the module."""
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    with fresh_namespace(cluster, module) as name:
        yield name


def _cluster(environment: Mapping[str, str], load_command: tuple[str, ...]) -> Cluster:
    reached = Cluster(
        kubeconfig=Path(environment["KUBECONFIG"].split(os.pathsep)[0]),
        registry=environment.get("KUBE_REGISTRY") or None,
        environment=dict(environment),
        load_command=load_command,
    )
    reached.kubectl("version", "--request-timeout=20s")
    return reached


@contextlib.contextmanager
def _started(up: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Start the cluster unless it runs; stop what a test process started when the last one that uses it has ended."""
    lock = Path(tempfile.gettempdir()) / f"prebinder-kube-{os.getuid()}.lock"
    with lock.open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            # Not started twice: that may write files anew which its parts watch, and end them.
            if not (environment := _running(up)):
                users.write("started\n")
                users.flush()
                subprocess.run([*up, "up"], check=True, capture_output=True, timeout=_UP_SECONDS)
                environment = _environment(up)
            yield environment
        finally:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # another test process still uses it, and stops it at its end
            else:
                users.seek(0)
                if users.read():
                    subprocess.run([*up, "down"], check=False, capture_output=True, timeout=_UP_SECONDS)
                    users.truncate(0)


def _environment(up: tuple[str, ...]) -> dict[str, str]:
    said = subprocess.run([*up, "env"], check=True, capture_output=True, text=True, timeout=30).stdout
    return {**os.environ, **_exports(said)}


def _running(up: tuple[str, ...]) -> dict[str, str] | None:
    """The environment of a cluster that answers; None when there is none yet."""
    try:
        environment = _environment(up)
        kubectl = shutil.which("kubectl", path=environment.get("PATH"))
        if kubectl is None or "KUBECONFIG" not in environment:
            return None
        command = [kubectl, "get", "--raw", "/readyz", "--request-timeout=5s"]
        subprocess.run(command, check=True, capture_output=True, timeout=30, env=environment)
    except (subprocess.SubprocessError, OSError):
        return None
    return environment


def _exports(text: str) -> dict[str, str]:
    """Shell exports (`export NAME=value`, quoted or with `$NAME` in them) as values."""
    found: dict[str, str] = {}
    for statement in re.split(r"[\n;]", text):
        for word in shlex.split(statement.strip().removeprefix("export ")):
            if match := _EXPORT.match(word):
                known = {**os.environ, **found}
                found[match["name"]] = re.sub(
                    r"\$\{?(\w+)\}?", lambda m, known=known: known.get(m[1], ""), match["value"]
                )
    return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(shlex.split(os.environ.get(name, "")))


def _absent(why: str) -> NoReturn:
    if os.environ.get("PREBINDER_TEST_EVERYTHING") == "1":
        pytest.fail(f"{why} (PREBINDER_TEST_EVERYTHING=1)")
    pytest.skip(why)
