"""The site's pages in a real Chromium: narrow and wide, light and dark, with and without scripts, by keyboard alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from prebinder.model.catalogue import Catalogue, ImageState
from tests.launcher_site.site.catalogues import branch, catalogue, entry, hostile, repository
from tests.launcher_site.site.conftest import Send, Visited

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

PATHS = ("", "status/", "about/", "repositories/gh/ann~course/", "nowhere", "v2/gh/ann/course/wip")

# The contrast of every text with what is behind it, by WCAG 2's formula; tells what is below AA (3:1 for large text).
POOR_CONTRAST = """() => {
  const rgb = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility() || e.closest("noscript, .sr, option")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgb(style.color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${e.className}: ${e.textContent.trim()}`);
  }
  return poor;
}"""


async def failing(send: Send) -> None:
    await send("waiting", "Wait")
    await send(
        "building", "".join(f"\x1b[{c}m{c}\x1b[0m " for c in (*range(30, 38), *range(90, 98), *range(40, 48), 2))
    )
    await send("failed", "It failed.", failure="repository", build="b4")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1600])
async def test_every_page_fits_and_can_be_read(chromium: Browser, visited: Visited, scheme: Any, width: int) -> None:
    visited.scripts["wip"] = failing
    # Colours are measured at rest: nothing is halfway through a transition.
    context = await chromium.new_context(
        color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 800}
    )
    page = await context.new_page()
    grounds = set()
    for path in PATHS:
        await page.goto(visited.url + path)
        if path.startswith("v2/"):
            await expect(page.locator("#failure")).to_be_visible()
            await expect(page.locator("#log .line").last).to_be_visible()
        await page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert await page.evaluate(POOR_CONTRAST) == [], path
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        grounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 1
    assert (int(re.findall(r"\d+", grounds.pop())[0]) > 128) == (scheme == "light")
    await context.close()


async def test_hostile_texts_run_nothing_and_break_no_layout(page: Page, visited: Visited) -> None:
    visited.publish(hostile())
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog))
    await page.set_viewport_size({"width": 360, "height": 800})
    for path in ("", "status/", "repositories/gh/ann~course/"):
        await page.goto(visited.url + path)
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        assert await page.locator("main img:not([src*='/badge'])").count() == 0
    assert dialogs == []


async def test_without_scripts_the_pages_are_complete(chromium: Browser, visited: Visited) -> None:
    context = await chromium.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(visited.url)
    await expect(page.locator(".card").first).to_contain_text("23 Nov 2026, 12:29 UTC")
    await expect(page.locator("#link-form")).to_be_hidden()
    await expect(page.locator("noscript p")).to_contain_text("Write the link yourself")
    await expect(page.get_by_role("link", name="Launch The course", exact=True)).to_have_attribute(
        "href", "/v2/gh/ann/course/HEAD"
    )
    await page.get_by_role("link", name="The course", exact=True).click()
    await page.locator("summary").first.click()
    await expect(page.locator("#snippet-1-2")).to_be_visible()
    assert await page.get_by_role("button", name="Copy").count() == 0, "no button that does nothing"
    await context.close()


async def test_times_are_relative_and_their_titles_absolute(page: Page, visited: Visited) -> None:
    await page.clock.set_fixed_time("2026-11-23T14:29:00Z")
    await page.goto(visited.url)
    time = page.locator("time").first
    await expect(time).to_have_text("2 hours ago")
    assert "2026" in (await time.get_attribute("title") or "")


async def test_everything_is_reached_by_keyboard_and_seen(page: Page, visited: Visited) -> None:
    await page.goto(visited.url)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    reached = []
    for _ in range(30):
        await page.keyboard.press("Tab")
        told = await page.evaluate(
            """() => {
              const e = document.activeElement;
              if (e === document.body) return null;
              const [style, place] = [getComputedStyle(e), e.getBoundingClientRect()];
              return [e.id || e.textContent.trim(), style.outlineStyle !== "none", place.width > 0];
            }"""
        )
        if told is None:
            break
        assert told[1], f"focus on {told[0]} is not seen"
        assert told[2]
        reached.append(told[0])
    expected = ["The course", "Launch The course", "provider", "repository", "ref"]
    assert [name for name in reached if name in expected] == expected


async def test_a_badge_is_copied_by_keyboard(page: Page, visited: Visited) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto(visited.url + "repositories/gh/ann~course/")
    await page.locator("summary").first.press("Enter")
    await page.get_by_role("button", name="Copy Markdown").first.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="Copied.")).to_have_count(1)
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == (f"[![Launch]({visited.url}badges/gh/ann~course/main.svg)]({visited.url}v2/gh/ann/course/main)")


@pytest.mark.parametrize(
    ("fill", "link"),
    [
        ({"repository": "ann/course"}, "v2/gh/ann/course/HEAD"),
        ({"repository": "ann/course", "ref": "teach/week 2"}, "v2/gh/ann/course/teach/week%202"),
        (
            {"repository": "ann/course", "path": "dir/a b.ipynb"},
            "v2/gh/ann/course/HEAD?labpath=dir/a%20b.ipynb",
        ),
        (
            {"provider": "git", "repository": "https://git.example.org/a'b.git", "ref": "v1"},
            "v2/git/https%3A%2F%2Fgit.example.org%2Fa%27b.git/v1",
        ),
        (
            {"repository": "ann/course", "path-kind": "urlpath", "path": "git-pull?repo=x&branch=y"},
            "v2/gh/ann/course/HEAD?urlpath=git-pull%3Frepo%3Dx%26branch%3Dy",
        ),
        (
            {"repository": "https://github.com/ann/course/blob/main/notebooks/a.ipynb"},
            "v2/gh/ann/course/main?labpath=notebooks/a.ipynb",
        ),
    ],
)
async def test_the_form_makes_a_link(page: Page, visited: Visited, fill: dict[str, str], link: str) -> None:
    await page.goto(visited.url)
    for name, value in fill.items():
        field = page.locator(f"#{name}")
        if name in ("provider", "path-kind"):
            await field.select_option(value)
        else:
            await field.fill(value)
            await field.blur()
    await expect(page.locator("#made-link")).to_have_text(visited.url + link)
    await expect(page.locator("#made-markdown")).to_have_text(
        f"[![Launch]({visited.url}badge_logo.svg)]({visited.url}{link})"
    )
    await expect(page.locator("#made-launch")).to_have_attribute("href", "/" + link)


async def test_the_form_says_what_is_missing(page: Page, visited: Visited) -> None:
    await page.goto(visited.url)
    await page.locator("#repository").fill("course")
    await expect(page.locator("#form-message")).to_have_text("Write the repository as owner/repository.")
    await expect(page.locator("#made")).to_be_hidden()


async def test_repositories_are_found_by_words(page: Page, visited: Visited) -> None:
    visited.publish(
        catalogue(*(repository(f"ann/course-{n}", title=f"Course {n}", description=f"Topic {n}") for n in range(12)))
    )
    await page.goto(visited.url)
    await page.get_by_role("searchbox").fill("course topic 11")
    await expect(page.locator(".card:visible")).to_have_count(1)
    await page.get_by_role("searchbox").fill("nothing like this")
    await expect(page.locator("#filter-none")).to_be_visible()


async def test_a_page_follows_what_is_published(page: Page, visited: Visited) -> None:
    def at(state: ImageState, *more: Any) -> Catalogue:
        return catalogue(repository(refs=(branch("main", 1), *more), revisions=(entry(1, state), entry(2, state))))

    visited.publish(at(ImageState.BUILDING))
    await page.clock.install()
    await page.goto(visited.url)
    await expect(page.locator(".card .state")).to_have_text("Building")
    await page.locator("#repository").fill("kept/text")
    await page.get_by_role("link", name="The course", exact=True).focus()
    visited.publish(at(ImageState.READY))
    await page.clock.run_for(4100)
    await expect(page.locator(".card .state")).to_have_text("Ready")
    await expect(page.get_by_role("link", name="The course", exact=True)).to_be_focused()
    await expect(page.locator("#repository")).to_have_value("kept/text")
    await page.goto(visited.url + "repositories/gh/ann~course/")
    await expect(page.locator(".ref-row")).to_have_count(1)
    visited.publish(at(ImageState.READY, branch("new", 2)))
    await page.clock.run_for(4100)
    await expect(page.locator(".ref-row")).to_have_count(2)
