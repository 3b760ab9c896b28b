"""Plain Git's signed webhook: what is taken, and everything that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prebinder.config.models import SecretRef
from prebinder.hosts.base import RefChanged
from prebinder.hosts.git import GitHost
from prebinder.hosts.signature import sign
from prebinder.model.failure import WebhookMalformed, WebhookRejected
from prebinder.model.spec import git_url

SECRET = "as long as a secret should be"
URL = "https://git.example.org/course.git"
GOOD: dict[str, Any] = {"repository": URL, "ref": "refs/heads/main", "before": "a" * 40, "after": "b" * 40}


@pytest.fixture
def host(tmp_path: Path) -> GitHost:
    (tmp_path / "secret").write_text(SECRET + "\n")
    return GitHost(tmp_path, webhook_secret=SecretRef(file=tmp_path / "secret"))


def signed(body: bytes, **more: str) -> dict[str, str]:
    return {"x-prebinder-signature-256": sign(SECRET, body), **more}


def body(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_a_push_becomes_a_changed_ref(host: GitHost) -> None:
    sent = body()
    changes = host.verify_webhook(signed(sent, **{"x-prebinder-delivery": "d-1"}), sent)
    assert changes == (RefChanged(git_url(URL), "main", "b" * 40, "d-1"),)


def test_a_tag_and_a_branch_with_slashes_have_their_short_names(host: GitHost) -> None:
    for ref, short in (("refs/tags/v1.0", "v1.0"), ("refs/heads/teach/week-1", "teach/week-1")):
        sent = body(ref=ref)
        assert host.verify_webhook(signed(sent), sent)[0].ref == short


def test_zeros_say_that_the_ref_is_gone(host: GitHost) -> None:
    sent = body(after="0" * 40)
    assert host.verify_webhook(signed(sent), sent)[0].revision is None


def test_githubs_header_is_taken_too(host: GitHost) -> None:
    sent = body()
    assert host.verify_webhook({"x-hub-signature-256": sign(SECRET, sent)}, sent)


def test_refs_that_are_neither_branch_nor_tag_change_nothing(host: GitHost) -> None:
    sent = body(ref="refs/notes/commits")
    assert host.verify_webhook(signed(sent), sent) == ()


def test_further_keys_are_left_alone(host: GitHost) -> None:
    sent = body(pusher={"name": "Ada"})
    assert host.verify_webhook(signed(sent), sent)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-prebinder-signature-256": ""},
        {"x-prebinder-signature-256": "sha256="},
        {"x-prebinder-signature-256": "sha1=0123"},
        {"x-prebinder-signature-256": "sha256=" + "0" * 64},
        {"x-prebinder-signature-256": sign("another secret", body())},
        {"x-prebinder-signature-256": sign(SECRET, body() + b" ")},
        {"x-prebinder-signature-256": sign(SECRET, body()).removeprefix("sha256=")},
        {"x-prebinder-signature-256": "sha256=é"},
        {"x-prebinder-signature-256": "sha256=\udcff"},
    ],
)
def test_without_the_bodys_signature_nothing_is_taken(host: GitHost, headers: dict[str, str]) -> None:
    with pytest.raises(WebhookRejected) as caught:
        host.verify_webhook(headers, body())
    assert not isinstance(caught.value, WebhookMalformed)
    assert SECRET not in str(caught.value)


def test_a_wrong_signature_beside_a_right_one_of_the_other_name_is_refused(host: GitHost) -> None:
    sent = body()
    headers = {"x-prebinder-signature-256": "sha256=" + "0" * 64, "x-hub-signature-256": sign(SECRET, sent)}
    with pytest.raises(WebhookRejected):
        host.verify_webhook(headers, sent)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"repository": "caf\xe9"}',
        b"[" * 100_000,
        body(repository="file:///etc"),
        body(repository="ext::sh -c id"),
        body(repository="--upload-pack=id"),
        body(repository=7),
        body(repository="https://git.example.org/" + "x" * 5000),
        body(ref="refs/heads/-x"),
        body(ref="refs/heads/a..b"),
        body(ref="refs/heads/" + "x" * 300),
        body(ref="refs/heads/"),
        body(ref=""),
        body(after="main"),
        body(after="B" * 40),
        body(after="b" * 41),
        body(after="b" * 40 + "\n"),
        json.dumps({"ref": "refs/heads/main"}).encode(),
    ],
)
def test_a_rightly_signed_body_that_is_not_as_documented_is_malformed(host: GitHost, sent: bytes) -> None:
    with pytest.raises(WebhookMalformed) as caught:
        host.verify_webhook(signed(sent), sent)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_without_a_secret_no_webhook_is_taken(tmp_path: Path) -> None:
    sent = body()
    with pytest.raises(WebhookRejected, match="No webhook secret is configured"):
        GitHost(tmp_path).verify_webhook({"x-prebinder-signature-256": sign("", sent)}, sent)


def test_a_changed_secret_is_in_force_at_once(host: GitHost, tmp_path: Path) -> None:
    sent = body()
    (tmp_path / "secret").write_text("another secret")
    assert host.verify_webhook({"x-prebinder-signature-256": sign("another secret", sent)}, sent)
    with pytest.raises(WebhookRejected):
        host.verify_webhook(signed(sent), sent)


def test_a_secret_that_is_gone_refuses_without_naming_it(host: GitHost, tmp_path: Path) -> None:
    (tmp_path / "secret").unlink()
    with pytest.raises(WebhookRejected, match="cannot be read"):
        host.verify_webhook(signed(body()), body())
