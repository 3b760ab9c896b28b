"""The demo's Git server, against a real Git client."""

from __future__ import annotations

from tests.support.git_server import GitServer, git


def test_clone_commit_and_push_work(git_server: GitServer, tmp_path) -> None:
    course = git_server.create()
    git("clone", "--quiet", course.url, tmp_path / "clone")
    assert (tmp_path / "clone/README.md").read_text() == "# Course\n"
    second = course.push({"README.md": "# Changed\n"}, "Change it")
    git("pull", "--quiet", cwd=tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == second
