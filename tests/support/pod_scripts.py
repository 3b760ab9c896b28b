"""What makes a pod of the scripted image (scripted_pod.py) run a script: its order's `clone_url`."""

from __future__ import annotations

import base64

DIGEST = "sha256:" + "ab" * 32


def clone_url(script: str) -> str:
    """The URL that carries a script."""
    return "https://script.invalid/" + base64.b64encode(script.encode()).decode().replace("/", "_")
