"""The commands of the podman plugin: nothing privileged, no credentials where steps run."""

from __future__ import annotations

from importlib.metadata import entry_points

from prebinder.builders.podman_engine import PodmanEngine, build_command, push_command


def build(**more: object) -> list[str]:
    given = {"tag": "x:1", "path": "/c", "dockerfile": "", "buildargs": {}, "labels": {}, "memory": 0, "platform": ""}
    return build_command(**{**given, **more})  # type: ignore[arg-type]


def test_repo2docker_finds_the_plugin() -> None:
    (found,) = entry_points(group="repo2docker.engines", name="prebinder-podman")
    assert found.load() is PodmanEngine


def test_builds_get_neither_the_hosts_network_nor_privileges_nor_credentials() -> None:
    command = build(memory=10**9, buildargs={"A": "b"}, labels={"c": "d"})
    assert command[:2] == ["podman", "build"]
    text = " ".join(command)
    for never in ("--network", "privileged", "cap-add", "security-opt", "authfile", "creds", "--volume", "-v "):
        assert never not in text
    assert {"--memory=1000000000", "--memory-swap=1000000000", "--build-arg=A=b", "--label=c=d"} <= set(command)
    assert command[-1] == "/c"


def test_only_the_push_gets_credentials() -> None:
    assert push_command("x:1", "/run/auth.json", tls_verify=True) == [
        *("podman", "push", "--quiet", "--authfile=/run/auth.json", "x:1")
    ]
    assert "--tls-verify=false" in push_command("x:1", "", tls_verify=False)
