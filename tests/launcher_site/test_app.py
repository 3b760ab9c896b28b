"""The endpoint's routes: what clients in the wild rely on, to the byte where they do."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from prebinder.model.catalogue import Catalogue
from prebinder_site import catalogue as catalogue_module
from prebinder_site.catalogue import CatalogueFollower, first_catalogue
from prebinder_site.static import StaticSite
from tests.support.endpoint import World, catalogue, world


async def get(w: World, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    async with w.session.request(
        method, w.url + path, headers=named, skip_auto_headers=["Accept-Encoding"], allow_redirects=False
    ) as answer:
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()


async def pages(w: World) -> None:
    await w.until(lambda: w.app.state.endpoint.static.page("/index.html"))


async def test_the_stream_is_exact_to_the_byte(tmp_path: Path) -> None:
    async with world(tmp_path, hold_open=0.0) as w:
        status, headers, body = await get(w, "build/gh/Ada/Course/HEAD")
    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["access-control-allow-origin"] == "*"
    assert "set-cookie" not in headers
    blocks = body.split(b"\n\n")
    assert blocks.pop() == b""
    for block in blocks:
        assert block.startswith(b"data: {")
        assert b"\n" not in block
        assert json.loads(block[6:])["message"].endswith("\n")
    assert blocks[0] == b'data: {"phase": "built", "message": "Found built image, launching...\\n", "imageName": ' + (
        b'"registry.test/binder/ada-2dcourse-' + blocks[0].split(b"ada-2dcourse-")[1]
    )
    assert blocks[1] == b'data: {"phase": "launching", "message": "Launching server...\\n"}'


async def test_a_silent_stream_has_comment_lines_and_stays_open_after_ready(tmp_path: Path) -> None:
    async with world(tmp_path, keepalive=0.05, hold_open=0.6) as w:
        w.hub.hold = asyncio.Event()
        asyncio.get_running_loop().call_later(0.4, w.hub.hold.set)
        _, _, body = await get(w, "build/gh/Ada/Course/HEAD")
    before, after = body.split(b'"phase": "ready"')
    assert b"\n\n:keepalive\n\n" in before
    # The client is to close first; the stream outlives `ready`.
    assert b":keepalive\n\n" in after


async def test_head_of_a_stream_starts_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        status, headers, _ = await get(w, "build/gh/Ada/Course/HEAD", "HEAD")
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert (await get(w, "build/gh/Ada/Course/HEAD", "POST"))[0] == 405
        assert w.hub.requests == []


async def test_pages_of_other_sites_may_ask_first(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path in ("build/gh/Ada/Course/HEAD", "versions"):
            status, headers, _ = await get(w, path, "OPTIONS", Origin="https://book.test")
            assert status == 204
            assert headers["access-control-allow-origin"] == "*"
            assert "cache-control" in headers["access-control-allow-headers"]
        assert "access-control-allow-origin" not in (await get(w, "metrics"))[1]


async def test_only_the_configured_origin_is_let_in(tmp_path: Path) -> None:
    async with world(tmp_path, allow_origin="https://book.test") as w:
        headers = (await get(w, "versions"))[1]
        assert headers["access-control-allow-origin"] == "https://book.test"
        assert "origin" in headers["vary"]


async def test_every_answer_has_the_security_headers(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await pages(w)
        for path in ("", "v2/gh/a/b/HEAD", "versions", "no-such-page", "builds/none/log", "build/x"):
            headers = (await get(w, path))[1]
            assert headers["x-content-type-options"] == "nosniff", path
            assert "frame-ancestors 'none'" in headers["content-security-policy"], path
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["referrer-policy"] == "same-origin"


async def test_the_launch_page_answers_every_link_and_unknown_paths_are_404(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await pages(w)
        status, headers, page = await get(w, "v2/gh/Ada/Course/HEAD?labpath=a%2Fb.ipynb")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert (await get(w, "v2/git/https%3A%2F%2Fhost%2Fr/HEAD"))[2] == page
        for path in ("no-such-page", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "%00"):
            assert (await get(w, path))[0] == 404, path


async def test_pages_come_compressed_and_are_not_sent_again_when_unchanged(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await pages(w)
        status, headers, plain = await get(w, "")
        assert status == 200
        _, zipped_headers, zipped = await get(w, "", Accept_Encoding="gzip")
        assert zipped_headers["content-encoding"] == "gzip"
        assert gzip.decompress(zipped) == plain
        assert "accept-encoding" in zipped_headers["vary"]
        status, again, body = await get(w, "", If_None_Match=headers["etag"])
        assert (status, body) == (304, b"")
        assert again["etag"] == headers["etag"]
        assert (await get(w, "", "HEAD"))[2] == b""
        assert (await get(w, "", "POST"))[0] == 405


async def test_the_oldest_links_are_redirected(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path, location in (
            ("repo/ada/course", "/v2/gh/ada/course/HEAD"),
            ("repo/ada/course/a/b.ipynb", "/v2/gh/ada/course/HEAD?urlpath=a%2Fb.ipynb"),
        ):
            status, headers, _ = await get(w, path)
            assert (status, headers["location"]) == (302, location)
        status, headers, _ = await get(w, "repo/%2F%2Fevil.test/x")
        assert not headers.get("location", "").startswith("//")


async def test_versions_and_providers_have_binderhubs_shape(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        versions = json.loads((await get(w, "versions"))[2])
        assert {"builder_info", "binderhub"} <= versions.keys()
        providers = json.loads((await get(w, "api/repoproviders"))[2])
    assert [p["id"] for p in providers] == ["gh"]
    assert providers[0].keys() >= {"displayName", "id", "spec", "detect", "repo", "ref"}


@pytest.mark.parametrize(
    ("away", "status", "wrong"),
    [("controller", 200, "controller"), ("hub", 503, "JupyterHub"), ("images", 503, "image store"), ("", 200, None)],
)
async def test_health_says_which_part_is_down_and_ready_images_need_no_controller(
    tmp_path: Path, away: str, status: int, wrong: str | None
) -> None:
    async with world(tmp_path, controller_up=away != "controller", hub_up=away != "hub") as w:
        w.images.down = away == "images"
        answered, _, body = await get(w, "health")
    health = json.loads(body)
    assert answered == status
    assert health["ok"] is (status == 200)
    failing = [c for c in health["checks"] if not c["ok"]]
    assert [c["service"] for c in failing] == ([wrong] if wrong else [])
    assert all(c["message"] for c in failing)


async def test_logs_are_plain_text_whatever_they_hold(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.will_build("2" * 40)
        status, headers, body = await get(w, "builds/b1/log")
        assert (status, body) == (200, w.controller.log)
        assert headers["content-type"] == "text/plain; charset=utf-8"
        assert headers["x-content-type-options"] == "nosniff"
        assert json.loads((await get(w, "builds/b1"))[2])["id"] == "b1"
        for path in ("builds/none/log", "builds/..%2fstatus/log", "builds/../log", "builds/a%20b"):
            assert (await get(w, path))[0] == 404, path


async def test_logs_without_a_controller_are_503(tmp_path: Path) -> None:
    async with world(tmp_path, controller_up=False) as w:
        assert (await get(w, "builds/b1/log"))[0] == 503


async def test_metrics_have_binderhubs_names_and_few_labels(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.click("gh/Ada/Course/HEAD")
        w.images.images[f"registry.test/binder/x:{'3' * 40}"] = "x"
        text = (await get(w, "metrics"))[2].decode()
    assert (
        'binderhub_launch_count_total{provider="GitHub",repo="https://github.test/Ada/Course",status="success"} 1.0'
        in text
    )
    assert 'binderhub_launch_time_seconds_count{retries="0",status="success"} 1.0' in text
    for name in ("binderhub_build_time_seconds", "binderhub_inprogress_builds", "binderhub_inprogress_launches"):
        assert f"# TYPE {name} " in text


async def test_status_tells_the_catalogue_and_the_controller_but_no_path_of_this_machine(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.until(lambda: w.app.state.endpoint.follower.connected)
        status = json.loads((await get(w, "api/status"))[2])
    assert status["catalogue"]["version"] == "1"
    assert status["catalogue"]["following"] is True
    assert "configuration" not in status["controller"]


async def test_a_change_of_the_catalogue_reaches_clicks_pages_and_the_copy_on_disk(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await pages(w)
        await w.until(lambda: w.app.state.endpoint.follower.connected)
        await w.controller.publish(catalogue("2", title="A new title"))
        await w.until(lambda: w.app.state.endpoint.follower.index.catalogue.version == "2")
        copy = w.settings.state_folder / "catalogue.json"
        await w.until(lambda: Catalogue.model_validate_json(copy.read_bytes()).version == "2")
        await w.until(lambda: b"A new title" in w.app.state.endpoint.static.page("/").body)
        assert b"A new title" in (await get(w, ""))[2]


async def test_an_endpoint_starts_with_a_broken_copy_and_no_controller(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    async with world(tmp_path / "one", controller_up=False) as w:
        copy = w.settings.state_folder / "catalogue.json"
        copy.write_text('{"version": "1", "repos')
        first = first_catalogue(w.settings)
        follower = CatalogueFollower(w.app.state.endpoint.controller, copy, first, lambda _: None)
        assert follower.index.catalogue.version == ""


async def test_a_new_endpoint_is_ready_once_it_has_a_catalogue(tmp_path: Path) -> None:
    async with world(tmp_path, copy=False) as w:
        follower = w.app.state.endpoint.follower
        await w.until(lambda: follower.connected)
        assert (await get(w, "ready"))[0] == 200


async def test_a_new_endpoint_waits_for_a_silent_controller_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, controller_up=False, copy=False) as w:
        assert (await get(w, "ready"))[0] == 503
    monkeypatch.setattr(catalogue_module, "_PATIENCE", 0.0)
    (tmp_path / "two").mkdir()
    async with world(tmp_path / "two", controller_up=False, copy=False) as w:
        assert (await get(w, "ready"))[0] == 200


def test_a_link_out_of_the_sites_folder_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<p>hello</p>")
    (site / "link.txt").symlink_to(tmp_path / "secret.txt")
    static = StaticSite(site)
    static.reload()
    assert static.page("/") is not None
    assert static.page("/link.txt") is None
