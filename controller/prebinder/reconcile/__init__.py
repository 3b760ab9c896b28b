"""The controller's rounds: observe, plan, submit, collect, publish; the queue; the running of builds.

Level-triggered: each round compares what should exist with what exists and acts on the difference. A webhook only makes
a round come sooner.
"""

from prebinder.reconcile.controller import Controller
from prebinder.reconcile.errors import BuildEnded, BuildNotFound, HookClosed, QueueFull, UnsupportedHost

__all__ = ["BuildEnded", "BuildNotFound", "Controller", "HookClosed", "QueueFull", "UnsupportedHost"]
