"""A click: what is asked of whom, and what the person sees."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from prebinder.model.events import Phase
from prebinder.model.failure import FailureKind, RefNotFound
from prebinder.model.messages import Problem
from prebinder.model.spec import github
from prebinder_site import launch
from tests.support.endpoint import ABSENT, NEWER, READY, catalogue, name_of, world
from tests.support.serving import serving


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


async def test_an_endpoint_that_never_met_its_controller_opens_what_is_registered_and_built(tmp_path: Path) -> None:
    entry = catalogue().repositories[0].model_copy(update={"refs": (), "revisions": (), "default_branch": None})
    async with world(tmp_path, controller_up=False, copy=False, registered=(entry,)) as w:
        w.host.answers["HEAD"] = READY
        w.images.images[str(name_of(READY))] = "registry.test/binder/course@sha256:ready"
        assert (await w.click("gh/ada/course/HEAD"))[-1]["phase"] == "ready"
        assert w.hub.launches[0]["image"] == "registry.test/binder/course@sha256:ready"
        # The Git hosts of strangers are not asked.
        assert (await w.click("gh/eve/course/HEAD"))[-1]["phase"] == "failed"
        assert len(w.host.asked) == 1


async def test_the_registered_spelling_of_a_github_name_is_used(tmp_path: Path) -> None:
    async with world(tmp_path, controller_up=False) as w:
        ready = (await w.click("gh/ada/COURSE/HEAD"))[-1]
    assert ready["phase"] == "ready"
    assert ready["image"] == str(name_of(READY))
    assert ready["binder_request"] == "v2/gh/ada/COURSE/HEAD"


async def test_master_that_does_not_exist_means_head_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        events = await w.click("gh/Ada/Course/master")
    assert events[0] == {
        "phase": "waiting",
        "message": "There is no branch master; HEAD (trunk) is used instead.\n",
    }
    assert events[-1]["phase"] == "ready"


async def test_a_fresh_ref_is_not_looked_up_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.click("gh/Ada/Course/trunk")
        assert w.host.asked == []


async def test_a_ref_that_webhooks_feed_is_not_looked_up_again(tmp_path: Path) -> None:
    old = catalogue(fed_by_webhook=True, looked_at=datetime(2020, 1, 1, tzinfo=UTC))
    async with world(tmp_path, known=old) as w:
        await w.click("gh/Ada/Course/trunk")
        assert w.host.asked == []


async def test_a_stale_ref_is_resolved_at_the_click_once_for_many(tmp_path: Path) -> None:
    async with world(tmp_path, known=catalogue(looked_at=datetime(2020, 1, 1, tzinfo=UTC))) as w:
        w.host.answers["trunk"] = NEWER
        w.images.images[str(name_of(NEWER))] = "registry.test/binder/course@sha256:newer"
        clicks = await asyncio.gather(*(w.click("gh/Ada/Course/trunk") for _ in range(20)))
        assert {c[-1]["binder_persistent_request"] for c in clicks} == {f"v2/gh/Ada/Course/{NEWER}"}
        assert len(w.host.asked) == 1
        assert len(w.images.asked) == 1


async def test_a_host_that_is_slow_costs_the_budget_and_the_last_known_revision_is_used_with_its_age(
    tmp_path: Path,
) -> None:
    old = catalogue(looked_at=datetime.now(UTC) - timedelta(hours=2))
    async with world(tmp_path, known=old, click_budget=0.2) as w:
        w.host.hold = asyncio.Event()
        began = time.monotonic()
        events = await w.click("gh/Ada/Course/trunk")
        assert time.monotonic() - began < 2
        assert events[0]["phase"] == "waiting"
        assert "did not answer in time" in events[0]["message"]
        assert f"{READY[:7]}, last seen 2 hours ago" in events[0]["message"]
        assert events[-1]["binder_persistent_request"] == f"v2/gh/Ada/Course/{READY}"
        # The next click does not wait again, and gets the answer once there is one.
        assert (await w.click("gh/Ada/Course/trunk"))[-1]["phase"] == "ready"
        assert len(w.host.asked) == 1
        w.host.answers["trunk"] = READY
        w.host.hold.set()


async def test_a_ref_that_the_host_does_not_have_is_not_found(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.host.answers["nowhere"] = RefNotFound("There is no ref nowhere in Ada/Course.")
        events = await w.click("gh/Ada/Course/nowhere")
    assert events == [
        {
            "phase": "failed",
            "message": "There is no ref nowhere in Ada/Course.\n",
            "status_code": 404,
            "failure": "not-found",
        },
    ]


async def test_an_image_that_only_the_store_knows_is_launched_without_the_controller(tmp_path: Path) -> None:
    async with world(tmp_path, controller_up=False) as w:
        w.images.images[str(name_of(NEWER, github("bob/other")))] = "registry.test/binder/other@sha256:1"
        events = await w.click(f"gh/bob/other/{NEWER}")
    assert events[-1]["phase"] == "ready"
    assert w.hub.launches[0]["image"] == "registry.test/binder/other@sha256:1"


async def test_without_an_image_a_build_is_asked_for_followed_and_launched(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.will_build(ABSENT)
        following = asyncio.create_task(w.click("gh/ada/course/next"))
        await w.until(lambda: w.controller.streams)
        await w.controller.say(Phase.WAITING, "2 builds before yours\n")
        await w.controller.say(Phase.FETCHING, "Cloning…\n")
        await w.controller.say(Phase.BUILDING, "Step 1\nStep 2\n")
        await w.controller.say(Phase.UNKNOWN, "a line\n")
        await w.controller.say(Phase.PUSHING, "Pushing\n")
        await w.controller.say(Phase.BUILT, "Built\n", image="registry.test/binder/course@sha256:new")
        events = await following
    assert [e["phase"] for e in events[:6]] == ["waiting", "fetching", "building", "unknown", "pushing", "built"]
    assert events[5] == {
        "phase": "built",
        "message": "Built image, launching...\n",
        "imageName": str(name_of(ABSENT)),
    }
    assert events[-1]["phase"] == "ready"
    assert w.hub.launches[0]["image"] == "registry.test/binder/course@sha256:new"
    # The ref goes as the person wrote it, the repository in its registered spelling.
    assert w.controller.bodies == [
        {"provider": "gh", "spec": "Ada/Course/next", "priority": "person", "rebuild": False},
    ]


async def test_a_hundred_followers_of_one_build_share_one_stream_each_from_the_first_line(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.will_build(ABSENT)
        early = [asyncio.create_task(w.click("gh/Ada/Course/next")) for _ in range(50)]
        await w.until(lambda: w.controller.streams)
        for number in range(500):
            await w.controller.say(Phase.BUILDING, f"line {number}\n")
        late = [asyncio.create_task(w.click("gh/Ada/Course/next")) for _ in range(50)]
        await w.until(lambda: w.controller.requests.count("build") > 1)
        await w.controller.say(Phase.BUILT, "Built\n", image="registry.test/binder/course@sha256:new")
        clicks = await asyncio.gather(*early, *late)
        assert w.controller.streams == 1
    wanted = [f"line {n}\n" for n in range(500)]
    for events in clicks:
        assert [e["message"] for e in events if e["phase"] == "building"] == wanted
        assert events[-1]["phase"] == "ready"


async def test_a_controller_that_restarts_in_mid_build_is_waited_for_and_no_line_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    folder.mkdir()
    async with world(folder, controller_up=False) as w:
        controller = w.controller
        controller.will_build(ABSENT)
        w.app.state.endpoint.controller.base_url = "http://127.0.0.1:1/"
        async with serving(controller.app()) as address:
            w.app.state.endpoint.controller.base_url = address
            port = httpx.URL(address).port or 0
            following = asyncio.create_task(w.click("gh/Ada/Course/next"))
            await w.until(lambda: controller.streams)
            await controller.say(Phase.BUILDING, "one\n")
        # Away: its streams are cut. Meanwhile the build is finished by its next life.
        await w.until(lambda: not following.done())
        async with serving(controller.app(), port):
            await controller.say(Phase.BUILDING, "two\n")
            await controller.say(Phase.BUILT, "Built\n", image="registry.test/binder/course@sha256:new")
            events = await following
    said = [e["message"] for e in events if e["phase"] in ("building", "waiting")]
    assert said[0] == "one\n"
    assert said[-1] == "two\n"
    assert any("controller went away" in m for m in said)
    assert events[-1]["phase"] == "ready"
    assert controller.streams == 2


async def test_a_build_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.will_build(ABSENT)
        following = asyncio.create_task(w.click("gh/Ada/Course/next"))
        await w.until(lambda: w.controller.streams)
        await w.controller.say(Phase.FAILED, "pip: no such package\n", failure=FailureKind.REPOSITORY)
        events = await following
    assert events == [
        {
            "phase": "failed",
            "message": "pip: no such package\n",
            "status_code": 500,
            "failure": "repository",
            "build": "b1",
        }
    ]


async def test_only_a_click_that_asks_for_it_builds_a_failed_revision_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.reply = Problem(kind=FailureKind.REFUSED, message="no")
        await w.click("gh/Ada/Course/next")
        await w.click("gh/Ada/Course/next", "?rebuild=true")
    assert [body["rebuild"] for body in w.controller.bodies if "rebuild" in body] == [False, True]


async def test_a_refusal_of_the_controller_is_one_failed_event_in_its_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.controller.reply = Problem(kind=FailureKind.REFUSED, message="bob/other is not registered here.")
        w.host.answers["HEAD"] = NEWER
        events = await w.click("gh/bob/other/HEAD")
    assert events == [
        {"phase": "failed", "message": "bob/other is not registered here.\n", "status_code": 403, "failure": "refused"}
    ]


async def test_no_image_and_no_controller_is_one_clear_failed_event(tmp_path: Path) -> None:
    async with world(tmp_path, controller_up=False) as w:
        (event,) = await w.click("gh/Ada/Course/next")
    assert event["phase"] == "failed"
    assert event["status_code"] == 503
    assert "controller, which builds images, does not answer" in event["message"]


async def test_an_image_that_is_gone_is_built_again_once_and_launched(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.missing_images.add("registry.test/binder/course@sha256:ready")
        w.controller.will_build(READY)
        following = asyncio.create_task(w.click("gh/Ada/Course/trunk"))
        await w.until(lambda: w.controller.streams)
        await w.controller.say(Phase.BUILT, "Built\n", image="registry.test/binder/course@sha256:again")
        events = await following
        assert events[-1]["phase"] == "ready"
        assert [e["phase"] for e in events].count("built") == 2
        assert w.controller.bodies[0]["spec"] == f"Ada/Course/{READY}"
        assert w.controller.bodies[0]["rebuild"] is True
        assert len(w.hub.launches) == 1
        await w.until(lambda: len(w.hub.deleted) == 1)


async def test_a_server_that_fails_once_is_tried_again_and_its_user_removed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.images.images[str(name_of(READY))] = "registry.test/binder/course@sha256:ready"
        w.hub.failures = 1
        events = await w.click("gh/Ada/Course/trunk")
        assert events[-1]["phase"] == "ready"
        assert {"phase": "launching", "message": "Launch attempt 1 failed, retrying...\n"} in events
        await w.until(lambda: len(w.hub.deleted) == 1)


async def test_a_server_that_never_starts_is_failed_in_the_hubs_words(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.images.images[str(name_of(READY))] = "registry.test/binder/course@sha256:ready"
        w.hub.failures = 99
        events = await w.click("gh/Ada/Course/trunk")
        assert events[-1]["phase"] == "failed"
        assert "the machine is tired" in events[-1]["message"]


async def test_a_full_hub_is_said_as_429_and_a_busy_one_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.busy = [("Active user limit exceeded. Try again in a few minutes.", {})]
        full = (await w.click("gh/Ada/Course/trunk"))[-1]
        w.hub.busy = [("Too many users trying to log in right now.", {"Retry-After": "1"})]
        waited = await w.click("gh/Ada/Course/trunk")
    assert full["status_code"] == 429
    assert "Active user limit exceeded" in full["message"]
    assert waited[-1]["phase"] == "ready"
    assert "trying again in 1 seconds" in " ".join(e["message"] for e in waited)


async def test_whoever_finds_many_servers_starting_waits_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterHub proposes 30 to 60 seconds, and refuses as long as `concurrent_spawn_limit` servers start."""
    monkeypatch.setattr(launch, "_BUSY_PAUSE", 0.02)
    async with world(tmp_path) as w:
        w.hub.busy = [("Too many users trying to log in right now.", {"Retry-After": "59"})] * 12
        events = await w.click("gh/Ada/Course/trunk")
    assert events[-1]["phase"] == "ready"
    assert sum("Many people start servers now" in e["message"] for e in events) == 12


async def test_a_hub_that_says_at_once_is_not_asked_without_a_pause(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.busy = [("Too many users trying to log in right now.", {"Retry-After": "0"})]
        began = time.perf_counter()
        events = await w.click("gh/Ada/Course/trunk")
    assert events[-1]["phase"] == "ready"
    assert time.perf_counter() - began > 0.5


async def test_a_hub_that_is_down_is_said_plainly(tmp_path: Path) -> None:
    async with world(tmp_path, hub_up=False) as w:
        events = await w.click("gh/Ada/Course/trunk")
    assert events[-1]["phase"] == "failed"
    assert events[-1]["status_code"] == 503
    assert "JupyterHub, which starts the servers, does not answer" in events[-1]["message"]


async def test_a_progress_stream_that_breaks_is_taken_up_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.break_progress = 1
        assert (await w.click("gh/Ada/Course/trunk"))[-1]["phase"] == "ready"


async def test_a_registry_that_is_down_stops_only_what_needs_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.images.down = True
        assert (await w.click("gh/Ada/Course/trunk"))[-1]["phase"] == "ready"
        events = await w.click("gh/Ada/Course/next")
    assert events == [
        {"phase": "failed", "message": "The registry does not answer.\n", "status_code": 503, "failure": "registry"}
    ]


async def test_build_only_ends_with_the_image_and_starts_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        events = await w.click("gh/Ada/Course/HEAD", "?build_only=true")
        assert events[-1] == {
            "phase": "ready",
            "message": "The image is ready.\n",
            "imageName": str(name_of(READY)),
        }
        assert w.hub.requests == []


async def test_build_only_is_refused_where_it_is_not_allowed(tmp_path: Path) -> None:
    async with world(tmp_path, build_only=False) as w:
        (event,) = await w.click("gh/Ada/Course/HEAD", "?build_only=true")
    assert (event["phase"], event["status_code"]) == ("failed", 400)


async def test_someone_who_goes_away_in_mid_launch_does_not_hold_anything_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.hub.hold = asyncio.Event()
        async for event in w.events("gh/Ada/Course/trunk"):
            if event["phase"] == "launching" and "Spawning" in event["message"]:
                break
        await w.until(lambda: w.app.state.endpoint.metrics.launches._value.get() == 0)
        # The Hub goes on by itself; its culler stops what nobody uses.
        assert len(w.hub.users) == 1
        w.hub.hold.set()


async def test_launches_are_recorded_for_the_controller_and_in_the_log_failures_too(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.click("gh/Ada/Course/trunk")
        w.host.answers["nowhere"] = RefNotFound("no")
        await w.click("gh/Ada/Course/nowhere")
        await w.until(lambda: len(w.controller.launches) == 2)
        lines = (w.settings.state_folder / "launches.jsonl").read_text().splitlines()
    good, bad = [json.loads(line) for line in lines]
    assert {k: good[k] for k in ("schema", "version", "provider", "spec", "ref", "status", "build_token")} == {
        "schema": "binderhub.jupyter.org/launch",
        "version": 6,
        "provider": "GitHub",
        "spec": "Ada/Course/trunk",
        "ref": READY,
        "status": "success",
        "build_token": False,
    }
    assert good["origin"] == "https://binder.test/"
    assert (bad["status"], bad["failure"]) == ("failure", "not-found")
    assert [r["ok"] for r in w.controller.launches] == [True, False]


HOSTILE = [
    "gh/ada/course/../../etc",
    "gh/ada/../HEAD",
    "gh/ada/course/%2e%2e%2fx",
    "gh/ada/course/-upload-pack=x",
    "gh/ada/course/%00",
    "gh/ada/course/a%0ab",
    "gh/ada/course/a%0d%0aSet-Cookie:x",
    "gh/ada/course/" + "a" * 10_000,
    "gh/ada/course/%252e%252e",
    "gh/ada%252fcourse/x/HEAD",
    "gh/ada/course/%ff%fe",
    "gh/-x/course/HEAD",
    "git/file%3A%2F%2F%2Fetc/HEAD",
    "git/ext%3A%3Ash%20-c%20id/HEAD",
    "nope/ada/course/HEAD",
    "gh/",
    "gh/ada",
    "gh/<script>/x/HEAD",
]


async def test_hostile_specs_are_one_failed_event_each_and_reach_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for spec in HOSTILE:
            events = await w.click(spec)
            assert [e["phase"] for e in events] == ["failed"], spec
            assert events[0]["status_code"] == 400, spec
            assert events[0]["message"].endswith("\n")
            assert len(events[0]["message"]) < 500
        assert w.host.asked == w.images.asked == w.hub.requests == []
        assert "build" not in w.controller.requests


async def test_hostile_landing_paths_are_refused_before_anything_starts(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for query in ("urlpath=..%2F..%2Fhub", "urlpath=https:%2F%2Fevil.test", "labpath=a%5Cb", "filepath=a%00"):
            (event,) = await w.click("gh/Ada/Course/HEAD", f"?{query}")
            assert (event["phase"], event["status_code"]) == ("failed", 400), query
        assert w.hub.requests == []


async def test_a_git_host_is_not_asked_about_a_repository_that_nobody_registered(tmp_path: Path) -> None:
    """Links are anybody's: they must not make us knock at any address."""
    async with world(tmp_path) as w:
        w.controller.reply = Problem(kind=FailureKind.REFUSED, message="bob/other is not registered here.")
        (event,) = await w.click("gh/bob/other/main")
        assert (event["phase"], event["status_code"]) == ("failed", 403)
        assert w.host.asked == []
