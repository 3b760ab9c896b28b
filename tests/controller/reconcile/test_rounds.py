"""From a push to a ready image: rounds over real Git repositories served over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebinder.hosts.base import Host
from prebinder.hosts.git import GitHost
from prebinder.model.spec import Provider
from tests.support.controller import started, until
from tests.support.git_server import GitServer


@pytest.fixture
def hosts(tmp_path: Path) -> dict[Provider, Host]:
    return {Provider.GIT: GitHost(tmp_path / "cache")}


async def test_a_registered_repository_is_built_where_its_default_branch_stands(
    tmp_path: Path, git_server: GitServer, hosts: dict[Provider, Host]
) -> None:
    course = git_server.create("course")
    async with started(tmp_path, [{"git": course.url}], hosts) as it:
        head = course.head()
        await until(lambda: it.is_state(head, "ready"))
        assert it.builder.revisions == [head]
        entry = await until(lambda: (e := it.state(head)) and e.summary and e)
        assert entry.image == it.images.held[str(it.image(course.repository, head))]
        assert entry.summary == "First"
        assert it.builder.orders[0].clone_url == course.url
