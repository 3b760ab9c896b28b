"""Fixtures of the image stores' tests."""

from tests.support.engine import engine
from tests.support.registry import registry

__all__ = ["engine", "registry"]
