"""The charts on a real cluster: a Git server in it, the tests' small JupyterHub, Prebinder by its chart, and clicks.

installed = install(cluster, namespace, images)      # a context manager; everything is gone afterwards
installed.click()                                    # the events of one click, from inside the cluster
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from prebinder.model.images import image_name
from prebinder.model.spec import git_url
from tests.support.images import Images, copy, forget
from tests.support.kube import Cluster
from tests.support.values import merged

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "prebinder"
HUB_CHART = ROOT / "tests" / "charts" / "hub"
RELEASE = "pb"
NAME = "pb-prebinder"

# One event a line; a stream that breaks off is opened again, as EventSource does.
_CLICK = """
import json, sys, time, urllib.request
url, wanted, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
end, opened = time.monotonic() + seconds, 0
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(url, timeout=30) as stream:
            opened += 1
            for line in stream:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    print(json.dumps({**event, "opened": opened}), flush=True)
                    if event["phase"] in ("ready", "failed"):
                        sys.exit(0)
    except OSError as error:
        print(json.dumps({"phase": "broken", "message": str(error), "opened": opened}), flush=True)
    time.sleep(0.5)
sys.exit(1)
"""
# Click after click, each as patient as the launch page, until a file is there; a line of JSON at the end: how many,
# and what went wrong with which.
_MANY = """
import json, os, sys, time, urllib.request
url, stop = sys.argv[1:]
end, done, lost = time.monotonic() + 300, 0, []
print("started", flush=True)
while time.monotonic() < end and not os.path.exists(stop):
    for attempt in range(8):
        try:
            phases = []
            with urllib.request.urlopen(url, timeout=20) as stream:
                for line in stream:
                    if line.startswith(b"data:"):
                        phases.append(json.loads(line[5:])["phase"])
                        if phases[-1] in ("ready", "failed"):
                            break
            if phases[-1:] == ["ready"]:
                break
            reason = str(phases)
        except OSError as error:
            reason = str(error)
        time.sleep(min(0.5 * 2**attempt, 5) if attempt else 0.3)
    else:
        lost.append(reason)
    done += 1
    time.sleep(0.05)
print(json.dumps({"clicks": done, "lost": lost}), flush=True)
"""

# A person who does something every second, until a file is there.
_USE = """
import os, sys, time, urllib.request
url, stop = sys.argv[1:]
end = time.monotonic() + 300
while time.monotonic() < end and not os.path.exists(stop):
    try:
        urllib.request.urlopen(url, timeout=10).read()
    except OSError:
        pass
    time.sleep(1)
"""


@dataclass
class Installed:
    """A Prebinder and its JupyterHub in a namespace."""

    cluster: Cluster
    namespace: str
    images: Images
    hub_token: str
    prefix: str
    """`registry.prefix`: of this test alone."""
    values: dict[str, Any] = field(default_factory=dict)

    def helm(self, *arguments: str, check: bool = True) -> str:
        return self.cluster.run("helm", "--namespace", self.namespace, *arguments, check=check)

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, check=check, stdin=stdin)

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Running pods of a part of Prebinder."""
        found = self.cluster.get("pods", self.namespace, f"app.kubernetes.io/component={component}")
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def servers(self) -> list[dict[str, Any]]:
        """People's servers."""
        return self.cluster.get("pods", self.namespace, "component=singleuser-server")

    def git_url(self, repository: str) -> str:
        return f"git://git.{self.namespace}.svc/{repository}.git"

    def push(self, repository: str, files: dict[str, str]) -> str:
        """Commit to a repository of the Git server (made when it is new). The commit's id."""
        write = "\n".join(f"cat > {name} <<'END'\n{text}\nEND" for name, text in files.items())
        script = f"""set -e
            export GIT_AUTHOR_NAME=Ada GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=Ada \\
                GIT_COMMITTER_EMAIL=a@example.org
            [ -d /srv/{repository}.git ] || git init -q --bare -b main /srv/{repository}.git
            rm -rf /tmp/work; git clone -q /srv/{repository}.git /tmp/work 2>/dev/null; cd /tmp/work
            git checkout -q -B main
            {write}
            git add -A; git commit -q --allow-empty -m Change; git push -q origin main; git rev-parse HEAD"""
        return self.kubectl("exec", "-i", "deployment/git", "--", "sh", stdin=script).split()[-1]

    def publish(self, repository: str, revision: str) -> str:
        """Put an image where the build of the revision would have: what the Hub starts."""
        name = image_name(self.prefix, git_url(self.git_url(repository)), revision)
        path = name.name.removeprefix(f"{self.images.registry}/")
        return f"{name.name}@{copy(self.images.registry, self.images.server, path, name.tag)}"

    def spec(self, repository: str, ref: str = "HEAD") -> str:
        return f"git/{quote(self.git_url(repository), safe='')}/{ref}"

    def click(self, repository: str, query: str = "", seconds: float = 120) -> list[dict[str, Any]]:
        """The events of one click, to its end, however often the stream breaks off."""
        process = self.start_click(repository, query, seconds)
        out, err = process.communicate(timeout=seconds + 30)
        assert out.strip(), err
        return [json.loads(line) for line in out.splitlines()]

    def start_click(self, repository: str, query: str = "", seconds: float = 120) -> subprocess.Popen[str]:
        """A click that goes on beside the test; one JSON event a line."""
        url = f"http://{NAME}/build/{self.spec(repository)}{query}"
        return self._python(_CLICK, url, "0", str(seconds))

    @contextlib.contextmanager
    def clicking(self, repository: str) -> Iterator[None]:
        """Clicks without a server, one after the other, while the block runs. Fails when one of them was lost."""
        stop = f"/tmp/stop-{secrets.token_hex(4)}"
        process = self._python(_MANY, f"http://{NAME}/build/{self.spec(repository)}?build_only=true", stop)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "started"
            yield
            self.kubectl("exec", "deployment/git", "--", "touch", stop)
            out, errors = process.communicate(timeout=90)
        finally:
            process.kill()
        result = json.loads(out.splitlines()[-1]) if out.strip() else {"lost": errors}
        assert result["lost"] == [], result
        assert result["clicks"] > 10, result

    @contextlib.contextmanager
    def used(self, server: dict[str, Any]) -> Iterator[None]:
        """A server (a `ready` event) is not idle while the block runs."""
        stop = f"/tmp/stop-{secrets.token_hex(4)}"
        process = self._python(_USE, f"{server['url']}api/status?token={server['token']}", stop)
        try:
            yield
        finally:
            self.kubectl("exec", "deployment/git", "--", "touch", stop)
            process.kill()
            process.communicate()

    def _python(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A script in the pod `person`, which stands for a browser."""
        command = [self.cluster.tool("kubectl"), "--namespace", self.namespace, "exec", "deployment/git", "--"]
        return subprocess.Popen(
            [*command, "python3", "-u", "-c", script, *arguments],
            env=dict(self.cluster.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, script: str, *arguments: str, seconds: float = 120) -> str:
        """The same, to its end."""
        out, err = self._python(script, *arguments).communicate(timeout=seconds)
        assert out, err
        return out.strip()

    def controller_status(self) -> dict[str, Any]:
        """What `prebinder status` says in the controller's pod."""
        said = self.prebinder("status", "--json")
        return json.loads(said) if said.strip() else {}

    def build_log(self, build: str) -> str:
        """The log of a build, as the controller keeps it."""
        return self.prebinder("logs", build)

    def prebinder(self, *arguments: str) -> str:
        """A command in the controller's pod; what it prints."""
        return self.prebinder_in(f"deployment/{NAME}-controller", *arguments)

    def prebinder_in(self, pod: str, *arguments: str) -> str:
        """The same in one of several."""
        command = ["exec", pod, "--", "python3", "-m", "prebinder", *arguments]
        return self.kubectl(*command, "--state", "/var/lib/prebinder", check=False)

    def upgrade(self, changes: dict[str, Any]) -> None:
        """`helm upgrade` with further values; waits until all is ready."""
        self.values = merged(self.values, changes)
        self._upgrade("upgrade")

    def _upgrade(self, action: str) -> None:
        command = ["helm", "--namespace", self.namespace, action, RELEASE, str(CHART), "--values", "-"]
        self.cluster.run(*command, "--wait", "--timeout", "110s", stdin=yaml.safe_dump(self.values))

    def look_at_configuration_now(self) -> None:
        """Kubelets hand on a changed ConfigMap within a minute or so; a change of the pod makes them look at once."""
        for component in ("controller", "endpoint"):
            for pod in self.pods(component):
                self.kubectl(
                    "annotate", "pod", pod["metadata"]["name"], f"looked={secrets.token_hex(4)}", "--overwrite"
                )


@contextlib.contextmanager
def installed(
    cluster: Cluster, namespace: str, images: Images, *, hub: dict[str, Any] | None = None, **values: Any
) -> Iterator[Installed]:
    """Everything in `namespace`; uninstalled when the block ends."""
    token, prefix = secrets.token_hex(32), f"{images.registry}/t{secrets.token_hex(4)}/"
    here = Installed(cluster, namespace, images, token, prefix)
    cluster.apply(git_server(images.prebinder), namespace)
    repository, _, at = images.prebinder.partition("@")
    base: dict[str, Any] = {
        "image": {"repository": repository, "digest": at},
        "hub": {
            "url": "http://proxy-public",
            "publicUrl": "http://proxy-public",
            "tokenSecret": {"name": "hub", "key": "token"},
        },
        "controller": {"persistence": {"enabled": False}, "resources": _SMALL},
        "endpoint": {"resources": _SMALL},
        "config": {
            "registry": {"prefix": prefix, "insecure": True},
            "polling": {"interval": 2, "jitter": 0},
            "repositories": [{"git": here.git_url("course")}],
        },
    }
    here.values = merged(base, values)
    settings = {"image": images.hub, "imagePrefix": prefix, "token": token, **(hub or {})}
    settings |= {name: secrets.token_hex(32) for name in ("proxyToken", "cullerToken", "cookieSecret")}
    try:
        cluster.run(
            *("helm", "--namespace", namespace, "install", "hub", str(HUB_CHART), "--values", "-"),
            stdin=yaml.safe_dump(settings),
        )
        here.kubectl("rollout", "status", "deployment/git", "--timeout=110s")
        first = here.push("course", {"README.md": "hello"})
        here.publish("course", first)
        here._upgrade("install")
        here.kubectl("rollout", "status", "deployment/hub", "--timeout=110s")
        yield here
    finally:
        for release in (RELEASE, "hub"):
            here.helm("uninstall", release, "--ignore-not-found", "--wait", "--timeout", "60s", check=False)
        forget(images.registry, prefix.partition("/")[2])


_SMALL = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}


def git_server(image: str) -> list[dict[str, Any]]:
    """`git daemon` on Prebinder's own image, which has Git; the same pod stands for a person's browser."""
    labels = {"app": "git"}
    container = {
        "name": "git",
        "image": image,
        "command": ["git", "daemon", "--reuseaddr", "--export-all", "--base-path=/srv", "/srv"],
        "ports": [{"containerPort": 9418}],
        "readinessProbe": {"tcpSocket": {"port": 9418}, "periodSeconds": 1},
        "volumeMounts": [{"name": "srv", "mountPath": "/srv"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "metadata": {"labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "srv", "emptyDir": {}}],
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "git"},
            "spec": {"selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "git"},
            "spec": {"selector": labels, "ports": [{"port": 9418}]},
        },
    ]


def phases(events: Sequence[dict[str, Any]]) -> list[str]:
    """The phases in order, each once."""
    found: list[str] = []
    for event in events:
        if event["phase"] not in found:
            found.append(event["phase"])
    return found


def server_name(url: str) -> str:
    """The user's name in a server's address."""
    match = re.search(r"/user/([^/]+)/", url)
    assert match, url
    return match[1]
