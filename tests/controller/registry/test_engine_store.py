"""The engine's own store, against a real podman."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prebinder.builders.engine import Engine
from prebinder.config.models import RegistryConfig
from prebinder.model.failure import ConfigurationError, RegistryError
from prebinder.model.images import ImageName
from prebinder.registry import EngineStore, OCIRegistry, create_image_store
from tests.support.engine import podman

NAME = ImageName("localhost/prebinder/course-2f-abc123", "a" * 40)


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
class TestWithPodman:
    @pytest.fixture
    async def store(self, engine: Engine) -> AsyncIterator[EngineStore]:
        store = EngineStore(engine.socket)
        yield store
        await store.aclose()

    @pytest.fixture
    def image(self, engine: Engine, tmp_path: Path) -> ImageName:
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
        podman(engine, "build", "--quiet", "--tag", str(NAME), tmp_path)
        return NAME

    async def test_an_image_is_there_until_it_is_deleted(self, store: EngineStore, image: ImageName) -> None:
        digest = await store.digest(image)
        assert digest is not None
        assert digest.startswith("sha256:")
        assert await store.launchable(image) == str(image)
        assert await store.delete(image)
        assert await store.digest(image) is None
        assert await store.launchable(image) is None
        assert not await store.delete(image)

    async def test_another_tag_is_another_image(self, store: EngineStore, image: ImageName) -> None:
        assert await store.digest(ImageName(image.name, "b" * 40)) is None

    async def test_health(self, store: EngineStore) -> None:
        await store.health()


async def test_an_engine_that_is_away_is_said(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "none.sock")
    with pytest.raises(RegistryError, match="does not answer"):
        await store.health()
    with pytest.raises(RegistryError, match="does not answer"):
        await store.digest(NAME)
    await store.aclose()


async def test_the_configuration_chooses_the_store(tmp_path: Path) -> None:
    registry = create_image_store(RegistryConfig(prefix="r.example.org/binder/"), tmp_path / "engine.sock")
    engine = create_image_store(RegistryConfig(), tmp_path / "engine.sock")
    assert isinstance(registry, OCIRegistry)
    assert registry.pushes
    assert isinstance(engine, EngineStore)
    assert not engine.pushes
    await registry.aclose()
    await engine.aclose()
    with pytest.raises(ConfigurationError, match=r"registry\.prefix"):
        create_image_store(RegistryConfig())
