"""A host in memory with one repository, for tests in which real Git would only be slower."""

from __future__ import annotations

import pytest

from prebinder.hosts.base import Host
from prebinder.model.spec import Provider, Repository, git_url
from tests.support.memory_host import MemoryHost


@pytest.fixture
def course() -> Repository:
    return git_url("https://memory.invalid/course")


@pytest.fixture
def host(course: Repository) -> MemoryHost:
    host = MemoryHost()
    host.push(course, "First")
    return host


@pytest.fixture
def hosts(host: MemoryHost) -> dict[Provider, Host]:
    return {Provider.GIT: host, Provider.GITHUB: host}
