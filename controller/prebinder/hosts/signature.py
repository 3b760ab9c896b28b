"""Signed webhooks: an HMAC of the raw body, as GitHub, Gitea and Prebinder's own webhook send it.

Nothing of a body is parsed before its signature is right. The comparison takes the same time wherever the two differ.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from prebinder.config.models import SecretRef
from prebinder.model.failure import WebhookRejected


def sign(secret: str, body: bytes) -> str:
    """The value of the header: `sha256=` and the hex HMAC-SHA256 of the body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def check_signature(secret: SecretRef | None, headers: Mapping[str, str], names: tuple[str, ...], body: bytes) -> None:
    """Raise WebhookRejected unless one of the headers `names` (lower case) holds the body's signature.

    The secret is read now, so that a changed one is in force without a restart.
    """
    if secret is None:
        raise WebhookRejected("No webhook secret is configured, so no webhook is taken.")
    given = next((headers[name] for name in names if name in headers), None)
    if given is None:
        raise WebhookRejected(f"The webhook is not signed: its header {names[0]} is missing.")
    try:
        expected = sign(secret.read().get_secret_value(), body)
    except ValueError:
        raise WebhookRejected("The webhook's secret cannot be read here; the operator must look.") from None
    if not hmac.compare_digest(expected.encode(), given.strip().encode("utf-8", "surrogateescape")):
        raise WebhookRejected("The webhook's signature is not that of its body: the two sides' secrets differ.")
