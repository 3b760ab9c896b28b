"""Fixtures that every test may ask for. They live in tests/support; importing one here makes it known to pytest."""

from tests.support.git_server import git_server

__all__ = ["git_server"]
