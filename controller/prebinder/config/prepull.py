"""The section `prepull`: images that wait on the nodes for their click. Used on Kubernetes only."""

from __future__ import annotations

from pydantic import Field

from prebinder.config.kubernetes import Toleration
from prebinder.config.values import Bytes, Seconds, Section

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


class PrepullConfig(Section):
    """Images that are pulled onto the nodes of people's servers before the click (Kubernetes only)."""

    enabled: bool = False
    """Whether it is done. One short-lived pod at a time, without any privilege, pulls one image onto one node."""
    namespace: str | None = Field(None, pattern=_DNS_LABEL)
    """Namespace of those pods; that of the builds when not set."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that people's servers run on; every node when empty."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of those nodes that people's servers tolerate. Nodes with others are left out."""
    default_branch: bool = True
    """Pull the newest image of each repository's default branch."""
    clicked_within: Seconds = 7 * 86400.0
    """Pull the newest images of branches and tags that somebody clicked in this time; 0 for none."""
    budget: Bytes = Field(50 * 10**9, gt=0)
    """Most disk on a node for images that are kept ready; the likeliest clicks come first."""
    every: Seconds = Field(60.0, ge=1)
    """Pause between two looks at what is missing; a new image is looked for at once."""
    time: Seconds = Field(900.0, gt=0)
    """Longest time of one pull."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets with the registry's credentials, in that namespace."""
