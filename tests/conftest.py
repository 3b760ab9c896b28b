"""Fixtures that every test may ask for. They live in tests/support; importing one here makes it known to pytest."""

import signal

from hypothesis import settings

from tests.support.git_server import git_server

__all__ = ["git_server"]

# Machines are shared and slow at times: a property is about the result, never about the time of one example.
settings.register_profile("prebinder", deadline=None)
settings.load_profile("prebinder")

# A suite that was started in the background inherits an ignored SIGINT, and so would every process that a test starts
# and ends as Ctrl-C does. With a handler of ours, those begin with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
