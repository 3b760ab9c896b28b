"""What the rest of Prebinder asks of the place where images are kept."""

from __future__ import annotations

from typing import Protocol

from prebinder.model.images import ImageName


class ImageStore(Protocol):
    """The truth about which images exist."""

    pushes: bool
    """Whether builds push here (an OCI registry), or the image is here once built (the engine's own store)."""

    async def digest(self, image: ImageName) -> str | None:
        """The digest (`sha256:…`) of the image, or None when there is none. Raises RegistryError."""
        ...

    async def launchable(self, image: ImageName) -> str | None:
        """What the Hub starts: `name@digest` from a registry, `name:tag` from the engine's store; None when there is
        no image. Raises RegistryError."""
        ...

    async def delete(self, image: ImageName) -> bool:
        """Delete the image; False when there was none. Raises RegistryError."""
        ...

    async def health(self) -> None:
        """Raises RegistryError when the store does not answer."""
        ...

    async def aclose(self) -> None:
        """Give back connections."""
        ...
