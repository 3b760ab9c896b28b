"""Fixtures that every test may ask for. They live in tests/support; importing one here makes it known to pytest."""

from hypothesis import settings

from tests.support.git_server import git_server

__all__ = ["git_server"]

# Machines are shared and slow at times: a property is about the result, never about the time of one example.
settings.register_profile("prebinder", deadline=None)
settings.load_profile("prebinder")
