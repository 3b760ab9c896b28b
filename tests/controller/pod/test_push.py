"""Pushing what a build left: into a real registry, checked to the byte, and nothing that is not what it says."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prebinder.builders.kubernetes.wire import CACHE_TAG, PodOrder
from prebinder.model.failure import RegistryError
from prebinder.pod.fetch import BASE, fetch
from prebinder.pod.layout import BadLayout, Layout
from prebinder.pod.push import push
from tests.support.git_server import serve
from tests.support.layouts import Layer, Left, configuration, layer, pod_order, sha256
from tests.support.registry import HTPASSWD, OCI_MANIFEST, Registry, registry, running_registry
from tests.support.small_disk import small_disk

__all__ = ["registry", "small_disk"]

BOTTOM, MIDDLE, TOP = layer("bottom"), layer("middle"), layer("top")


def manifest(registry: Registry, order: PodOrder, reference: str | None = None) -> dict[str, Any]:
    path = order.image_name.partition("/")[2]
    answer = httpx.get(
        f"http://{registry.host}/v2/{path}/manifests/{reference or order.image_tag}",
        headers={"Accept": f"{OCI_MANIFEST}, application/vnd.oci.image.index.v1+json"},
    )
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def blob(registry: Registry, order: PodOrder, digest: str) -> bytes:
    path = order.image_name.partition("/")[2]
    return httpx.get(f"http://{registry.host}/v2/{path}/blobs/{digest}").raise_for_status().content


def exists(registry: Registry, order: PodOrder) -> bool:
    path = order.image_name.partition("/")[2]
    url = f"http://{registry.host}/v2/{path}/manifests/{order.image_tag}"
    return httpx.head(url, headers={"Accept": OCI_MANIFEST}).is_success


async def pushed_base(registry: Registry, tmp_path: Path, layers: list[Layer]) -> str:
    """An image of those layers in another repository of the registry."""
    order = pod_order(registry.host, image_name=f"{registry.host}/bases/python", image_tag="1", write_cache=False)
    Left(tmp_path / "base", layers)
    await push(order, tmp_path / "base")
    return f"{order.image_name}:1"


async def test_the_image_is_in_the_registry_to_the_byte(registry: Registry, tmp_path: Path) -> None:
    left = Left(tmp_path / "image", [BOTTOM, TOP])
    order = pod_order(registry.host)
    digest = await push(order, left.folder)
    body = manifest(registry, order)
    assert digest == sha256(json.dumps(body, separators=(",", ":")).encode())
    assert [b["digest"] for b in body["layers"]] == [BOTTOM.digest, TOP.digest]
    assert [blob(registry, order, b["digest"]) for b in body["layers"]] == [BOTTOM.blob, TOP.blob]
    assert blob(registry, order, body["config"]["digest"]) == configuration([BOTTOM, TOP])
    assert await push(order, left.folder) == digest, "once more is the same"


async def test_layers_of_the_base_image_are_mounted_not_moved(registry: Registry, tmp_path: Path) -> None:
    base = await pushed_base(registry, tmp_path, [BOTTOM, MIDDLE])
    left = Left(tmp_path / "image", [BOTTOM, MIDDLE, TOP], known=[BOTTOM, MIDDLE])
    order = pod_order(registry.host, base_image=base)
    await push(order, left.folder)
    found = [b["digest"] for b in manifest(registry, order)["layers"]]
    assert found == [BOTTOM.digest, MIDDLE.digest, TOP.digest]
    assert [blob(registry, order, digest) for digest in found] == [BOTTOM.blob, MIDDLE.blob, TOP.blob]


async def test_a_layer_that_is_neither_here_nor_there_makes_no_image(registry: Registry, tmp_path: Path) -> None:
    left = Left(tmp_path / "image", [BOTTOM, TOP], known=[BOTTOM])
    order = pod_order(registry.host)
    with pytest.raises(RegistryError, match="no longer has it"):
        await push(order, left.folder)
    assert not exists(registry, order)


async def test_the_cache_is_what_the_next_build_fetches(registry: Registry, tmp_path: Path) -> None:
    base = await pushed_base(registry, tmp_path, [BOTTOM])
    order = pod_order(registry.host, base_image=base)
    left = Left(tmp_path / "image", [BOTTOM, MIDDLE, TOP], known=[BOTTOM])
    left.steps([configuration([BOTTOM], ["FROM", "ENV"]), configuration([BOTTOM, MIDDLE], ["FROM", "ENV", "RUN"])])
    await push(order, left.folder)
    assert len(manifest(registry, order, CACHE_TAG)["manifests"]) == 2

    await fetch(order, tmp_path / "fetched")
    fetched = Layout(tmp_path / "fetched")
    assert fetched.image(BASE).diff_ids == (BOTTOM.diff_id,)
    assert fetched.image("0").config == configuration([BOTTOM], ["FROM", "ENV"])
    assert fetched.image("1").diff_ids == (BOTTOM.diff_id, MIDDLE.diff_id)
    assert fetched.blob(MIDDLE.digest, 10**6) == MIDDLE.blob
    assert fetched.size(TOP.digest) == 0, "what no step names is not fetched"

    second = pod_order(registry.host, base_image=base, image_tag="cd" * 20)
    following = Left(tmp_path / "second", [BOTTOM, MIDDLE, TOP], known=[BOTTOM, MIDDLE])
    await push(second, following.folder)
    assert [b["digest"] for b in manifest(registry, second)["layers"]] == [BOTTOM.digest, MIDDLE.digest, TOP.digest]


async def test_steps_on_another_base_are_not_fetched(registry: Registry, tmp_path: Path) -> None:
    order = pod_order(registry.host)
    left = Left(tmp_path / "image", [BOTTOM, TOP])
    left.steps([configuration([BOTTOM, TOP], ["FROM", "RUN"])])
    await push(order, left.folder)
    base = await pushed_base(registry, tmp_path, [MIDDLE])
    await fetch(pod_order(registry.host, base_image=base), tmp_path / "fetched")
    with pytest.raises(BadLayout):
        Layout(tmp_path / "fetched").image("0")


async def test_a_build_that_may_not_write_the_cache_does_not(registry: Registry, tmp_path: Path) -> None:
    order = pod_order(registry.host, write_cache=False)
    left = Left(tmp_path / "image", [BOTTOM])
    left.steps([configuration([BOTTOM], ["FROM"])])
    await push(order, left.folder)
    with pytest.raises(httpx.HTTPStatusError):
        manifest(registry, order, CACHE_TAG)


async def test_steps_that_are_no_part_of_the_image_poison_nothing_and_harm_no_image(
    registry: Registry, tmp_path: Path
) -> None:
    order = pod_order(registry.host)
    left = Left(tmp_path / "image", [BOTTOM, TOP])
    left.steps([configuration([TOP], ["FROM"])])
    await push(order, left.folder)
    assert exists(registry, order)
    with pytest.raises(httpx.HTTPStatusError):
        manifest(registry, order, CACHE_TAG)


async def test_without_base_image_in_the_registry_the_message_names_it(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"bases/none:1\. Set builder\.base_image"):
        await fetch(pod_order(registry.host, base_image=f"{registry.host}/bases/none:1"), tmp_path / "fetched")


async def test_nothing_cached_yet_is_no_failure(registry: Registry, tmp_path: Path) -> None:
    await fetch(pod_order(registry.host), tmp_path / "fetched")
    assert json.loads((tmp_path / "fetched" / "index.json").read_text())["manifests"] == []


async def test_with_a_password_and_not_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    left = Left(tmp_path / "image", [BOTTOM])
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with running_registry(tmp_path / "registry", auth) as closed:
        order = pod_order(closed.host, write_cache=False)
        with pytest.raises(RegistryError, match="refuses us"):
            await push(order, left.folder)
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"auths": {closed.host: {"username": "ada", "password": "secret"}}}))
        assert (await push(order, left.folder, config)).startswith("sha256:")
    assert "secret" not in capsys.readouterr().err


def link_config_to(left: Left, target: Path) -> None:
    """The image's configuration is a link to a file of the container that pushes."""
    content = target.read_bytes()
    left.configure(content)
    path = left.layout / "blobs" / "sha256" / sha256(content).removeprefix("sha256:")
    path.unlink()
    path.symlink_to(target)


def link_folder(left: Left) -> None:
    blobs = left.layout / "blobs"
    blobs.rename(left.folder / "elsewhere")
    blobs.symlink_to(left.folder / "elsewhere")


def pipe_for_index(left: Left) -> None:
    (left.layout / "index.json").unlink()
    os.mkfifo(left.layout / "index.json")


def other_content(left: Left) -> None:
    path = left.layout / "blobs" / "sha256" / TOP.digest.removeprefix("sha256:")
    path.write_bytes(BOTTOM.blob)


def other_tar(left: Left) -> None:
    left.configure(configuration([BOTTOM, MIDDLE]))


def huge_tar(left: Left) -> None:
    tar = bytes(200 * 10**6)
    bomb = Layer(tar, gzip.compress(tar))
    left.manifest["layers"][1].update(digest=left.put(bomb.blob), size=len(bomb.blob))
    left.configure(configuration([BOTTOM, bomb]))


def not_gzip(left: Left) -> None:
    left.manifest["layers"][1].update(digest=left.put(b"no gzip at all"))
    left.write()


def unknown_form(left: Left) -> None:
    left.manifest["layers"][1]["mediaType"] = "application/vnd.example"
    left.write()


def path_as_digest(left: Left) -> None:
    left.manifest["config"]["digest"] = "sha256:../../../../run/registry/config.json"
    left.write()


def fewer_layers(left: Left) -> None:
    left.manifest["layers"].pop()
    left.write()


def no_index(left: Left) -> None:
    (left.layout / "index.json").unlink()


def large_index(left: Left) -> None:
    (left.layout / "index.json").write_bytes(b" " * (9 * 2**20))


def deep_index(left: Left) -> None:
    (left.layout / "index.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "forge",
    [
        link_folder,
        pipe_for_index,
        other_content,
        other_tar,
        huge_tar,
        not_gzip,
        unknown_form,
        path_as_digest,
        fewer_layers,
        no_index,
        large_index,
        deep_index,
    ],
)
async def test_what_is_no_honest_image_is_refused_and_has_no_tag(
    registry: Registry, tmp_path: Path, forge: Callable[[Left], None]
) -> None:
    left = Left(tmp_path / "image", [BOTTOM, TOP])
    forge(left)
    order = pod_order(registry.host)
    with pytest.raises(BadLayout):
        await push(order, left.folder)
    assert not exists(registry, order)


async def test_a_link_to_the_credentials_gives_them_to_nobody(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "config.json"
    secret.write_text('{"auths": {"registry.example.org": {"auth": "dG9wLXNlY3JldA=="}}}')
    left = Left(tmp_path / "image", [BOTTOM, TOP])
    link_config_to(left, secret)
    with pytest.raises(BadLayout) as caught:
        await push(pod_order(registry.host), left.folder)
    assert "dG9wLXNlY3JldA" not in str(caught.value) + capsys.readouterr().err


async def test_a_registry_that_shows_another_image_than_was_pushed_is_not_believed(tmp_path: Path) -> None:
    async def answer(request: Request) -> Response:
        if request.method == "GET":
            return Response(b'{"schemaVersion": 2}', media_type=OCI_MANIFEST)
        return Response(status_code=201 if request.method == "PUT" else 200)

    liar = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "HEAD", "PUT", "POST"])])
    left = Left(tmp_path / "image", [BOTTOM])
    with serve(liar) as url:
        order = pod_order(url.removeprefix("http://"), write_cache=False, read_cache=False)
        with pytest.raises(RegistryError, match="shows another image"):
            await push(order, left.folder)


async def test_a_registry_without_room_is_told_as_such_and_has_no_image(small_disk: Path, tmp_path: Path) -> None:
    large = layer("large", os.urandom(3 * 2**20))
    left = Left(tmp_path / "image", [BOTTOM, large])
    with running_registry(small_disk) as registry:
        order = pod_order(registry.host, write_cache=False, read_cache=False)
        with pytest.raises(RegistryError, match="no room left"):
            await push(order, left.folder)
        assert not exists(registry, order)


async def test_credentials_and_layers_do_not_follow_a_registry_to_another_scheme(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(request: Request) -> Response:
        asked.append(request.method)
        if request.method == "POST":
            location = f"https://{request.url.netloc}/v2/upload"
            return Response(status_code=202, headers={"Location": location})
        return Response(status_code=404)

    astray = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "HEAD", "PUT", "POST"])])
    left = Left(tmp_path / "image", [BOTTOM])
    with serve(astray) as url:
        order = pod_order(url.removeprefix("http://"), write_cache=False, read_cache=False)
        with pytest.raises(RegistryError, match="X-Forwarded-Proto"):
            await push(order, left.folder)
    assert "PUT" not in asked


async def test_a_registry_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    left = Left(tmp_path / "image", [BOTTOM])
    with pytest.raises(RegistryError, match="cannot be reached"):
        await push(pod_order("127.0.0.1:1", write_cache=False, read_cache=False), left.folder)
