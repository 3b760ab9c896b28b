"""The launch page in a real Chromium, over scripted event streams: what a person sees, and where the browser ends."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, expect

from prebinder_site.site.addresses import repository_segment
from tests.launcher_site.site.catalogues import catalogue, repository
from tests.launcher_site.site.conftest import Send, Visited

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

CASES: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent.parent / "landing_cases.json").read_text())
LAUNCH = "v2/gh/ann/course/"


async def for_ever() -> None:
    await asyncio.Event().wait()


def ready_at(visited: Visited, **fields: Any) -> Any:
    """The stream of a click on an image that is there. The server has another origin than the site."""
    server = visited.url.replace("127.0.0.1", "localhost") + "user/ann/"

    async def script(send: Send) -> None:
        await send("built", "Found built image, launching...", imageName="x")
        await send("launching", "Launching server...")
        await send("ready", "server running", **{"url": server, "token": "t0k", **fields})
        await for_ever()

    return script


async def test_a_ready_image_leads_straight_to_the_server(page: Page, visited: Visited) -> None:
    visited.scripts["main"] = ready_at(visited)
    await page.goto(visited.url)
    await page.goto(visited.url + LAUNCH + "main")
    await page.wait_for_url(re.compile(r"^http://localhost:\d+/user/ann/\?token=t0k$"))
    assert visited.builds == ["/build/gh/ann/course/main"]
    await expect_left(visited, 1)
    await page.go_back()
    assert page.url == visited.url, "the launch page is not in the way of going back"


async def test_a_ready_image_is_not_said_to_be_built(page: Page, visited: Visited) -> None:
    async def script(send: Send) -> None:
        await send("waiting", "There is no branch main; HEAD is used.")
        await send("built", "Found built image, launching...", imageName="x")
        await send("launching", "Launching server...")
        await send("launching", "Server requested")
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#step-launching")).to_contain_text("Server requested")
    shown = await page.locator(".step:visible .step-label").all_text_contents()
    assert shown == ["Find the image", "Start the server"]
    await expect(page.locator("#step-find")).to_contain_text("There is no branch main")
    await expect(page.locator("#status")).to_have_text("Starting the server.")
    await expect(page).to_have_title(re.compile("Starting the server · ann/course"))


async def test_a_build_is_followed_step_by_step_with_its_log(page: Page, visited: Visited) -> None:
    go = asyncio.Event()

    async def script(send: Send) -> None:
        await send("waiting", "2 builds are before this one")
        await go.wait()
        await send("fetching", "Cloning…")
        await send("building", "\x1b[1;31mred\x1b[0m plain <b>not bold</b> \x1b]0;title\x07\x1b[2Jend")
        await send("unknown", "50%\r100%\nnext")
        await send("pushing", "Pushing image")
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#step-waiting")).to_contain_text("2 builds are before this one")
    go.set()
    await expect(page.locator("#step-pushing")).to_have_attribute("aria-current", "step")
    for step in ("find", "waiting", "fetching", "building"):
        await expect(page.locator(f"#step-{step}")).to_have_class("step done")
        await expect(page.locator(f"#step-{step} .step-time")).to_have_text(re.compile(r"^\d+\.\d s$"))
    await expect(page.locator("#step-launching")).to_be_hidden()
    lines = page.locator("#log .line")
    await expect(lines).to_have_count(6)
    assert await lines.nth(2).text_content() == "red plain <b>not bold</b> end\n"
    assert await lines.nth(2).locator("span").get_attribute("class") == "a-bold a-red"
    assert await lines.nth(3).text_content() == "100%\n"
    assert await page.locator("#log b").count() == 0


async def test_a_failure_says_what_why_and_what_to_do(page: Page, visited: Visited) -> None:
    async def script(send: Send) -> None:
        await send("building", "Collecting pandas==9.9")
        await send("failed", "No matching <i>distribution</i>", failure="repository", build="b/4", status_code=500)
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    failure = page.locator("#failure")
    await expect(failure.locator("h2")).to_have_text("The repository's build failed")
    await expect(failure.locator("pre")).to_have_text("No matching <i>distribution</i>")
    await expect(failure).to_contain_text("correct the repository and push again")
    await expect(failure.get_by_role("link", name="The whole log")).to_have_attribute("href", "/builds/b%2F4/log")
    await expect(failure.get_by_role("link", name="About this repository")).to_have_attribute(
        "href", "/repositories/gh/ann~course/"
    )
    await expect(page.locator("#step-building")).to_have_class("step failed")
    await expect(page.locator("#status")).to_have_text("The repository's build failed.")
    await expect_left(visited, 1)
    visited.scripts["main"] = ready_at(visited)
    await failure.get_by_role("button", name="Try again").press("Enter")
    await page.wait_for_url("**/user/ann/?token=t0k")


async def expect_left(visited: Visited, count: int) -> None:
    async with asyncio.timeout(20), visited.changed:
        await visited.changed.wait_for(lambda: len(visited.left) >= count)


@pytest.mark.parametrize(
    ("status", "heading"), [(404, "No such repository or ref"), (403, "Not allowed here"), (500, "The launch failed")]
)
async def test_a_failure_without_a_kind_is_named_by_its_status(
    page: Page, visited: Visited, status: int, heading: str
) -> None:
    async def script(send: Send) -> None:
        await send("failed", "It said so.", status_code=status)
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#failure h2")).to_have_text(heading)
    await expect(page.locator("#failure pre")).to_have_text("It said so.")


async def stopped_clock(page: Page) -> None:
    """The page's timers fire by `clock.run_for` only."""
    await page.clock.install(time=0)
    await page.clock.pause_at(1000)


async def test_a_lost_connection_is_told_and_made_again(page: Page, visited: Visited) -> None:
    async def cut(send: Send) -> None:
        await send("building", "one\ntwo")

    async def whole(send: Send) -> None:
        await send("building", "one\ntwo\nthree")
        await for_ever()

    visited.scripts["main"] = cut
    await stopped_clock(page)
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#status")).to_contain_text("The connection was lost. Trying again in")
    visited.scripts["main"] = whole
    await page.clock.run_for(2000)
    await page.clock.resume()  # lines are drawn a frame at a time
    # The stream begins again from its first line; the log does not double.
    await expect(page.locator("#log-count")).to_have_text("3 lines")
    await expect(page.locator("#step-building")).to_have_class("step going")
    assert len(visited.builds) == 2


async def test_attempts_to_connect_again_have_an_end(page: Page, visited: Visited) -> None:
    async def cut(_: Send) -> None:
        return

    visited.scripts["main"] = cut
    await stopped_clock(page)
    await page.goto(visited.url + LAUNCH + "main")
    for attempt in range(1, 9):
        await expect(page.locator("#status")).to_contain_text(f"attempt {attempt} of 8")
        await page.clock.run_for(round(min(30_000, 500 * 2**attempt) * 1.25) + 100)
    await expect(page.locator("#failure h2")).to_have_text("The connection was lost")
    connections = len(visited.builds)
    await page.clock.run_for(200_000)
    assert len(visited.builds) == connections == 9


async def test_fifty_thousand_lines_leave_the_page_responsive(page: Page, visited: Visited) -> None:
    async def script(send: Send) -> None:
        await send("building", "the first line")
        for block in range(500):
            await send("building", "\n".join(f"\x1b[32m{block * 100 + n}\x1b[0m a line of the log" for n in range(100)))
        await send("building", "the last line")
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main", wait_until="commit")
    await page.evaluate(
        """() => {
          window.longest = 0;
          let last = performance.now();
          setInterval(() => {
            const now = performance.now();
            longest = Math.max(longest, now - last);
            last = now;
          }, 10);
        }"""
    )
    await expect(page.locator("#log")).to_contain_text("the last line")
    await expect(page.locator("#log-count")).to_have_text("50,002 lines")
    assert await page.locator("#log .line").count() <= 5001
    await expect(page.locator(".log-note")).to_contain_text("45,002 earlier lines are not shown here")
    longest = await page.evaluate("longest")
    assert longest < 4000, f"the page stood still for {longest:.0f} ms"
    started = time.perf_counter()
    await page.locator("#log-panel summary").click()
    await expect(page.locator("#log")).to_be_hidden()
    assert time.perf_counter() - started < 5


async def test_a_reader_who_scrolled_up_is_left_there(page: Page, visited: Visited) -> None:
    more = asyncio.Event()

    async def script(send: Send) -> None:
        await send("building", "\n".join(f"line {n}" for n in range(200)))
        await more.wait()
        await send("building", "\n".join(f"more {n}" for n in range(200)))
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    log = page.locator("#log")
    await expect(log).to_contain_text("line 199")
    at_end = "e => e.scrollHeight - e.scrollTop - e.clientHeight < 2"
    assert await log.evaluate(at_end)
    await log.evaluate("e => { e.scrollTop = 100; }")
    await expect(page.locator("#log-follow")).to_be_visible()
    more.set()
    await expect(log).to_contain_text("more 199")
    assert await log.evaluate("e => e.scrollTop") == 100
    await page.locator("#log-follow").click()
    assert await log.evaluate(at_end)
    await expect(page.locator("#log-follow")).to_be_hidden()


@pytest.mark.parametrize("query", [c["query"] for c in CASES["query"] if c["landing"] is None])
async def test_a_hostile_landing_path_is_refused_and_the_server_offered_without_it(
    page: Page, visited: Visited, query: str
) -> None:
    visited.scripts["main"] = ready_at(visited)
    await page.goto(f"{visited.url}{LAUNCH}main?{query}")
    await expect(page.locator("#landing")).to_be_visible()
    offer = page.get_by_role("link", name="Open your server without the landing path")
    await expect(offer).to_be_visible()
    assert page.url.startswith(visited.url), "the browser stayed"
    await offer.click()
    await page.wait_for_url("**/user/ann/?token=t0k")


@pytest.mark.parametrize("case", [c for c in CASES["query"] if c["landing"]], ids=lambda c: c["query"])
async def test_a_link_with_a_landing_path_ends_there(page: Page, visited: Visited, case: dict[str, str]) -> None:
    visited.scripts["main"] = ready_at(visited)
    await page.goto(f"{visited.url}{LAUNCH}main?{case['query']}")
    await page.wait_for_url("**/user/ann/**")
    mark = "&" if "?" in case["landing"] else "?"
    assert page.url == f"{visited.url.replace('127.0.0.1', 'localhost')}user/ann/{case['landing']}{mark}token=t0k"
    assert visited.builds == ["/build/gh/ann/course/main"]


async def test_the_landing_table_holds_in_the_browser(page: Page, visited: Visited) -> None:
    await page.goto(visited.url + "about/")
    module = next((visited.folder / "current" / "assets").glob("landing-*.js")).name
    told = await page.evaluate(
        """async ([module, cases]) => {
          const m = await import(module);
          const attempt = (f) => {
            try {
              return f();
            } catch (e) {
              if (e instanceof m.LandingError) return null;
              throw e;
            }
          };
          const address = (c) => m.serverAddress("http://hub.example/user/ann/", "t0k-en_1", c.landing);
          return {
            check: cases.check.map((c) => attempt(() => m.checkLanding(c.path))),
            query: cases.query.map((c) => attempt(() => m.landingPath(new URLSearchParams(c.query)))),
            address: cases.address.map((c) => attempt(() => address(c))),
          };
        }""",
        [f"/assets/{module}", CASES],
    )
    for kind, expected in (("check", "relative"), ("query", "landing"), ("address", "address")):
        for case, answer in zip(CASES[kind], told[kind], strict=True):
            assert answer == case[expected], case


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)//", "data:text/html,x/", "file:///etc/", "//elsewhere.example/", "", None, 7, "http://a@b/"],
)
async def test_a_servers_address_that_is_no_web_address_is_not_opened(page: Page, visited: Visited, url: Any) -> None:
    visited.scripts["main"] = ready_at(visited, url=url)
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#failure h2")).to_have_text("The server's address is not usable")
    assert page.url.startswith(visited.url)


async def test_a_link_without_a_path_lands_where_the_repository_says(page: Page, visited: Visited) -> None:
    visited.publish(catalogue(repository(urlpath="lab/tree/start.ipynb")))
    visited.scripts["main"] = ready_at(visited)
    await page.goto(visited.url + "v2/gh/Ann/Course/main")
    await page.wait_for_url("**/user/ann/lab/tree/start.ipynb?token=t0k")
    visited.scripts["main"] = ready_at(visited, urlpath="rstudio")
    await page.goto(visited.url + LAUNCH + "main")
    await page.wait_for_url("**/user/ann/rstudio?token=t0k")


@pytest.mark.parametrize(
    ("path", "name", "ref"),
    [
        ("gh/ann/course/teach/week-2", "ann/course", "teach/week-2"),
        ("gl/group%2Fsub%2Fproject/main", "group/sub/project", "main"),
        ("gl/group/project/main", "group/project", "main"),
        ("git/https%3A%2F%2Fgit.example.org%2Fa.git/v1%2F2", "https://git.example.org/a.git", "v1/2"),
        ("git/https%3A//git.example.org/a/b/main", "https://git.example.org/a/b", "main"),
        ("gist/ann/abc123", "ann/abc123", "HEAD"),
        ("gh/ann/%3Cimg%20src=x%20onerror=alert(1)%3E/main", "ann/<img src=x onerror=alert(1)>", "main"),
        ("gh/ann/%zz/main", "ann/%zz", "main"),
    ],
)
async def test_a_link_is_asked_for_as_it_came_and_shown_as_people_write_it(
    page: Page, visited: Visited, path: str, name: str, ref: str
) -> None:
    async def script(send: Send) -> None:
        await send("waiting", "Wait")
        await for_ever()

    visited.scripts[path.rsplit("/", 1)[1]] = script
    await page.goto(f"{visited.url}v2/{path}?urlpath=lab")
    await expect(page.locator("#step-waiting")).to_be_visible()
    assert visited.builds == [f"/build/{path}"]
    await expect(page.locator("#name")).to_have_text(name if name != "ann/course" else "The course")
    await expect(page.locator("#source code")).to_have_text(ref)
    assert await page.locator("main img").count() == 0


async def test_segments_are_the_same_in_python_and_in_the_browser(page: Page, visited: Visited) -> None:
    names = [
        ("gh", "Ann/Course"),
        ("git", "https://git.example.org:8443/~ann/été_1.git"),
        ("gl", "a/.b~c"),
        ("gh", ".x/y"),
    ]
    await page.goto(visited.url + "about/")
    module = next((visited.folder / "current" / "assets").glob("link-*.js")).name
    told = await page.evaluate(
        "async ([address, names]) => { const m = await import(address); return names.map((n) => m.segment(...n)); }",
        [f"/assets/{module}", names],
    )
    assert told == [repository_segment(*name) for name in names]


async def test_a_page_that_names_nothing_says_so(page: Page, visited: Visited) -> None:
    await page.goto(visited.url + "v2/gh")
    await expect(page.locator("#failure h2")).to_have_text("No such repository or ref")
    assert visited.builds == []


async def test_events_that_make_no_sense_are_passed_over(page: Page, visited: Visited) -> None:
    async def script(send: Send) -> None:
        await send("brand-new-phase", "A phase of the future")
        await send("building", "<none>", imageName={"a": 1})
        await send("launching", "Launching server...")
        await for_ever()

    visited.scripts["main"] = script
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#step-launching")).to_be_visible()
    await expect(page.locator("#log")).to_contain_text("A phase of the future")


async def test_without_scripts_the_launch_page_says_what_it_needs(chromium: Browser, visited: Visited) -> None:
    context = await chromium.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.get_by_role("heading", name="Launching needs JavaScript")).to_be_visible()
    await expect(page.locator("#launch")).to_be_hidden()
    await context.close()


async def test_a_name_with_markup_in_the_catalogue_stays_text(page: Page, visited: Visited) -> None:
    visited.publish(catalogue(repository(title="<img src=x onerror=alert(1)>")))
    visited.scripts["main"] = ready_at(visited, url="http://a@b/")
    await page.goto(visited.url + LAUNCH + quote("main"))
    await expect(page.locator("#name")).to_have_text("<img src=x onerror=alert(1)>")
    assert await page.locator("main img").count() == 0


async def test_a_browser_of_some_years_ago_launches_too(page: Page, visited: Visited) -> None:
    async def script(send: Send) -> None:
        await send("building", "one")
        await for_ever()

    visited.scripts["main"] = script
    await page.add_init_script("delete URL.canParse; delete URL.parse")
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#log-count")).to_have_text("1 line")


async def test_the_focus_goes_to_the_failure_and_back_to_what_happens(page: Page, visited: Visited) -> None:
    async def fails(send: Send) -> None:
        await send("failed", "It said so.")

    async def waits(_: Send) -> None:
        await for_ever()

    visited.scripts["main"] = fails
    await page.goto(visited.url + LAUNCH + "main")
    await expect(page.locator("#failure")).to_be_focused()
    visited.scripts["main"] = waits
    await page.keyboard.press("Tab")
    await page.locator("#retry").press("Enter")
    await expect(page.locator("#status")).to_be_focused()
