"""Where images are: an OCI registry, or the engine's own store. See `base.py`."""

from __future__ import annotations

from pathlib import Path

from prebinder.config.models import RegistryConfig
from prebinder.model.failure import ConfigurationError
from prebinder.registry.base import ImageStore
from prebinder.registry.engine_store import EngineStore
from prebinder.registry.oci import OCIRegistry

__all__ = ["EngineStore", "ImageStore", "OCIRegistry", "create_image_store"]


def create_image_store(config: RegistryConfig, engine_socket: Path | None = None) -> ImageStore:
    """The store that the configuration names: its registry, or else the engine that listens on `engine_socket`.

    Raises ConfigurationError when there is neither.
    """
    if config.prefix is not None:
        return OCIRegistry(config)
    if engine_socket is None:
        raise ConfigurationError("There is no container engine here to keep images: set registry.prefix.")
    return EngineStore(engine_socket)
