"""A click: what is asked of whom, and what the person sees."""

from __future__ import annotations

from pathlib import Path

from tests.support.endpoint import READY, name_of, world


async def test_a_click_on_a_ready_image_needs_neither_controller_nor_git_host(tmp_path: Path) -> None:
    async with world(tmp_path, controller_up=False, stale_after=0.0) as w:
        events = await w.click("gh/Ada/Course/HEAD")
    assert [e["phase"] for e in events if e["phase"] != "waiting"] == [
        "built",
        "launching",
        "launching",
        "launching",
        "launching",
        "ready",
    ]
    ready = events[-1]
    (user,) = w.hub.users
    assert ready["url"] == f"https://hub.test/user/{user}/"
    assert ready["image"] == str(name_of(READY))
    assert ready["repo_url"] == "https://github.test/Ada/Course"
    assert ready["binder_ref_url"] == f"https://github.test/Ada/Course/tree/{READY}"
    assert ready["binder_launch_host"] == "https://binder.test/"
    assert ready["binder_request"] == "v2/gh/Ada/Course/HEAD"
    assert ready["binder_persistent_request"] == f"v2/gh/Ada/Course/{READY}"
    assert w.hub.launches[0]["token"] == ready["token"]
    assert w.hub.launches[0]["image"] == "registry.test/binder/course@sha256:ready"
    assert w.images.asked == []
    assert w.controller.requests == []
