"""The registry as the pod's containers reach it: with the credentials that are mounted, if any."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prebinder.builders.kubernetes.wire import PodOrder
from prebinder.config.models import RegistryConfig
from prebinder.registry.blobs import BlobRegistry


@asynccontextmanager
async def open_registry(order: PodOrder, credentials: Path) -> AsyncIterator[BlobRegistry]:
    """The registry of the order's image, closed at the end."""
    config = RegistryConfig(
        prefix=f"{order.registry}/",
        insecure=order.insecure,
        credentials=credentials if credentials.exists() else None,
        timeout=order.registry_timeout,
    )
    registry = BlobRegistry(config)
    try:
        yield registry
    finally:
        await registry.aclose()
