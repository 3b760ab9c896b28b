"""Fixtures of the builders' tests."""

from tests.support.engine import base_image, engine
from tests.support.registry import registry

__all__ = ["base_image", "engine", "registry"]
