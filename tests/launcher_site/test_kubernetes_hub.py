"""The Hub's module on Kubernetes: why an image does not come, and what every pod of a person is like."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets.config import Config

from prebinder_site.kubernetes_hub import PrebinderKubeSpawner, ServerSettings, configure, pull_failure

PREFIX = "r.example.org/binder/"


def pod(reason: str | None, message: str = "", phase: str = "Pending") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}} if reason else {"running": {}}
    return {"metadata": {}, "status": {"phase": phase, "containerStatuses": [{"ready": not reason, "state": state}]}}


@pytest.mark.parametrize(
    ("reason", "message", "final"),
    [
        ("ErrImagePull", "failed to resolve image: r.example.org/binder/x@sha256:00: not found", True),
        ("ImagePullBackOff", 'Back-off: … "r.example.org/binder/x": 403 Forbidden', True),
        ("ErrImagePull", "pull access denied", True),
        ("InvalidImageName", "could not parse", True),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: connect: connection refused", False),
        ("ImagePullBackOff", "Back-off pulling image", False),
    ],
)
def test_an_image_that_does_not_come(reason: str, message: str, final: bool) -> None:
    failure = pull_failure(pod(reason, message))
    assert failure is not None
    assert failure[1] is final


@pytest.mark.parametrize("status", [None, {}, {"status": None}, pod(None), pod("ContainerCreating")])
def test_a_pod_that_is_on_its_way(status: Any) -> None:
    assert pull_failure(status) is None


def test_a_long_reason_keeps_its_end_where_the_cause_stands() -> None:
    failure = pull_failure(pod("ErrImagePull", f"failed to pull {'x' * 500}\nfailed to resolve: not found"))
    assert failure is not None
    assert len(failure[0]) <= 200
    assert failure[0].endswith("failed to resolve: not found")


def test_what_the_configuration_sets_is_what_kubespawner_knows() -> None:
    """A misspelt trait would be ignored in silence."""
    c = Config()
    configure(c, ServerSettings(image_prefix=PREFIX, user_namespaces=True))
    spawner_traits = PrebinderKubeSpawner.class_traits()
    for section in ("Spawner", "KubeSpawner", "PrebinderSpawner", "PrebinderKubeSpawner"):
        assert set(c[section]) <= set(spawner_traits), section


def test_every_server_is_without_token_and_privilege() -> None:
    c = Config()
    c.KubeSpawner.extra_pod_config = {"dnsPolicy": "None"}
    configure(c, ServerSettings(image_prefix=PREFIX, user_namespaces=True, pull_secrets=("pull",)))
    k = c.KubeSpawner
    assert k.automount_service_account_token is False
    assert k.service_account is None
    assert k.privileged is False
    assert k.container_security_context["capabilities"] == {"drop": ["ALL"]}
    assert k.container_security_context["runAsNonRoot"] is True
    assert k.extra_pod_config == {"dnsPolicy": "None", "hostUsers": False}
    assert k.image_pull_secrets == ["pull"]
    assert c.JupyterHub.allow_named_servers is False
    assert c.JupyterHub.authenticator_class == "null"


def test_starts_that_fail_one_after_the_other_do_not_end_the_hub() -> None:
    c = Config()
    c.Spawner.consecutive_failure_limit = 5  # zero-to-jupyterhub's
    configure(c, ServerSettings(image_prefix=PREFIX))
    assert c.Spawner.consecutive_failure_limit == 0


def test_root_is_refused() -> None:
    with pytest.raises(ValueError, match="user"):
        ServerSettings(image_prefix=PREFIX, user=0)


def test_a_prefix_is_needed() -> None:
    """The umbrella chart leaves it empty: an installation that forgets it would otherwise start any image."""
    with pytest.raises(ValueError, match="image_prefix"):
        ServerSettings(image_prefix="")
