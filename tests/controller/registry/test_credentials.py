"""Credentials are found in a Docker config.json as Docker finds them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from prebinder.model.failure import RegistryError
from prebinder.registry.credentials import Credentials, read_credentials


def auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("registry", "config", "expected"),
    [
        (
            "r.example.org",
            {"auths": {"r.example.org": {"auth": auth("ada:pass:word")}}},
            Credentials("ada", "pass:word"),
        ),
        ("r.example.org", {"auths": {"https://r.example.org/v1/": {"auth": auth("ada:x")}}}, Credentials("ada", "x")),
        ("r.example.org:5000", {"auths": {"r.example.org": {"auth": auth("ada:x")}}}, None),
        ("docker.io", {"auths": {"https://index.docker.io/v1/": {"auth": auth("ada:x")}}}, Credentials("ada", "x")),
        ("r.example.org", {"auths": {"r.example.org": {"username": "ada", "password": "x"}}}, Credentials("ada", "x")),
        ("r.example.org", {"auths": {"r.example.org": {"identitytoken": "t"}}}, Credentials("", "", "t")),
        ("r.example.org", {"auths": {"other.example.org": {"auth": auth("ada:x")}}}, None),
        ("r.example.org", {"auths": {}, "credHelpers": {"other.example.org": "gcloud"}}, None),
        ("r.example.org", {}, None),
    ],
)
def test_found_as_docker_finds_them(
    tmp_path: Path, registry: str, config: dict[str, Any], expected: Credentials | None
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert read_credentials(file, registry) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", r"not a Docker config\.json"),
        (json.dumps({"auths": {"r.example.org": {"auth": "%%%"}}}), "base64"),
        (json.dumps({"credsStore": "desktop"}), "docker-credential-desktop"),
        (json.dumps({"credHelpers": {"r.example.org": "ecr-login"}}), "docker-credential-ecr-login"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(RegistryError, match=says):
        read_credentials(file, "r.example.org")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        read_credentials(tmp_path / "none.json", "r.example.org")


def test_no_secret_in_what_is_printed() -> None:
    assert "hunter2" not in repr(Credentials("ada", "hunter2", "hunter2"))
