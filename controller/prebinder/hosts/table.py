"""Which host answers for which provider."""

from __future__ import annotations

from pathlib import Path

from prebinder.config.models import HostsConfig
from prebinder.hosts.base import Host
from prebinder.hosts.git import GitHost
from prebinder.hosts.github import GitHubHost
from prebinder.model.spec import Provider


def create_hosts(config: HostsConfig, cache: Path) -> dict[Provider, Host]:
    """The Git hosts as configured; `cache` is a folder of theirs. Asks nobody anything, and costs next to nothing."""
    return {
        Provider.GITHUB: GitHubHost(config.github, timeout=config.timeout),
        Provider.GIT: GitHost(cache / "git", webhook_secret=config.git.webhook_secret, timeout=config.timeout),
    }
