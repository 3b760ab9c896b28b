"""The generated site: whole at any moment, well-formed, closed in itself, and deaf to what hostile texts want."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebinder.model.catalogue import Catalogue, ImageState
from prebinder_site.site import generator
from prebinder_site.site.addresses import segment, web_address
from prebinder_site.site.generator import SiteSettings, publish
from prebinder_site.site.pages import duration
from tests.launcher_site.site.catalogues import branch, catalogue, entry, hostile, repository, tag
from tests.launcher_site.site.markup import Page

SETTINGS = SiteSettings("Prebinder", "https://launch.example.org/binder/")
# What the launch endpoint answers, not a file.
ENDPOINT = re.compile(r"(v2/.+|builds/[^/]+/log|health|metrics|api/status)$")


def pages(site: Path) -> dict[str, Page]:
    return {p.relative_to(site).as_posix(): Page(p.read_text()) for p in sorted(site.rglob("*.html"))}


def site_of(content: Catalogue, folder: Path, settings: SiteSettings = SETTINGS) -> Path:
    publish(content, settings, folder)
    return folder / "current"


@pytest.fixture(params=["ordinary", "empty", "hostile"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    contents = {
        "ordinary": catalogue(),
        "empty": Catalogue(
            version="0", published_at=catalogue().published_at, on_demand="anyone", image_prefix="localhost/"
        ),
        "hostile": hostile(),
    }
    return site_of(contents[request.param], tmp_path)


def test_a_site_is_plain_files_behind_one_relative_link(tmp_path: Path) -> None:
    generation = publish(catalogue(), SETTINGS, tmp_path)
    assert (tmp_path / "current").readlink() == Path("generations") / generation.name
    for path in (
        "index.html", "launch.html", "404.html", "robots.txt", "favicon.svg", "badge_logo.svg", "badge.svg",
        "logo_social.png", "status/index.html", "about/index.html", "repositories/gh/ann~course/index.html",
    ):  # fmt: skip
        assert (tmp_path / "current" / path).is_file(), path
    assert all(p.stat().st_mode & 0o004 for p in generation.rglob("*")), "another server's user can read every file"


def test_the_same_content_swaps_nothing(tmp_path: Path) -> None:
    first = publish(catalogue(), SETTINGS, tmp_path)
    link = (tmp_path / "current").lstat()
    again = publish(
        catalogue(version="2", published_at=catalogue().published_at.replace(year=2027)), SETTINGS, tmp_path
    )
    assert again == first
    assert (tmp_path / "current").lstat().st_ino == link.st_ino
    assert [g.name for g in (tmp_path / "generations").iterdir()] == [first.name]


def test_the_last_two_generations_are_kept(tmp_path: Path) -> None:
    made = [publish(catalogue(repository(title=f"Title {n}")), SETTINGS, tmp_path) for n in range(4)]
    assert len(set(made)) == 4
    assert {g.name for g in (tmp_path / "generations").iterdir()} == {g.name for g in made[-2:]}
    assert (tmp_path / "current").resolve() == made[-1].resolve()


def test_going_back_to_an_earlier_content_works(tmp_path: Path) -> None:
    one, two = catalogue(repository(title="One")), catalogue(repository(title="Two"))
    first = publish(one, SETTINGS, tmp_path)
    publish(two, SETTINGS, tmp_path)
    assert publish(one, SETTINGS, tmp_path) == first
    assert "One" in (tmp_path / "current" / "index.html").read_text()


def test_what_a_crash_left_half_written_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "generations" / ".unfinished-abc"
    left.mkdir(parents=True)
    (left / "index.html").write_text("half")
    publish(catalogue(), SETTINGS, tmp_path)
    assert not left.exists()


def test_a_publish_that_fails_leaves_the_site_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = publish(catalogue(), SETTINGS, tmp_path)
    with monkeypatch.context() as patch:
        # A full disk cannot be had here without a mount.
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            publish(catalogue(repository(title="Other")), SETTINGS, tmp_path)
    assert (tmp_path / "current").resolve() == before.resolve()
    assert [g.name for g in (tmp_path / "generations").iterdir()] == [before.name]


def test_a_thousand_repositories_take_seconds(tmp_path: Path) -> None:
    commits = tuple(entry(n, ImageState.READY, f"Commit {n}", build=f"b{n}") for n in range(1, 21))
    many = catalogue(
        *(
            repository(f"ann/course-{n}", refs=(branch("main", 1), tag("v1.0", 2), tag("v2.0", 3)), revisions=commits)
            for n in range(1000)
        )
    )
    started = time.perf_counter()
    site = site_of(many, tmp_path)
    took = time.perf_counter() - started
    assert took < 20, f"{took:.1f} s; about 3 s on an idle core"
    assert len(list((site / "repositories" / "gh").iterdir())) == 1000


def test_every_page_is_well_formed(site: Path) -> None:
    for name, page in pages(site).items():
        assert page.problems == [], name
        assert [e.attributes.get("lang") for e in page.all("html")] == ["en"], name
        assert page.all("title"), name
        assert all("alt" in e.attributes for e in page.all("img")), name
        assert len(page.all("main")) == 1, name
        labelled = {e.attributes["for"] for e in page.all("label") if "for" in e.attributes}
        for control in (*page.all("input"), *page.all("select")):
            named = control.attributes.get("id") in labelled or "aria-label" in control.attributes
            assert named or control.attributes.get("id") == "filter", (name, control)


def test_pages_need_no_inline_script_or_style_and_no_other_origin(site: Path) -> None:
    for name, page in pages(site).items():
        assert page.all("style") == [], name
        for element in page.elements:
            assert not [a for a in element.attributes if a.startswith("on") or a == "style"], (name, element)
            if element.tag == "script":
                assert element.attributes["src"].startswith("/binder/assets/"), (name, element)
            for attribute in ("src", "srcset", "action"):
                if value := element.attributes.get(attribute):
                    assert value.startswith("/binder/"), (name, element)
            if element.tag == "link":
                assert element.attributes["href"].startswith("/binder/"), (name, element)


def test_every_link_leads_somewhere(site: Path) -> None:
    known = pages(site)
    for name, page in known.items():
        here = urljoin(SETTINGS.url, "v2/gh/a/b/c" if name == "launch.html" else name)
        for element in page.elements:
            target = element.attributes.get("href") or element.attributes.get("src")
            if not target:
                continue
            address = urlsplit(urljoin(here, target))
            if address.netloc != "launch.example.org":
                assert address.scheme in ("http", "https"), (name, target)
                continue
            assert address.path.startswith("/binder/"), (name, target)
            path = unquote(address.path.removeprefix("/binder/"))
            file = path + "index.html" if path == "" or path.endswith("/") else path
            if ENDPOINT.match(path):
                continue
            assert (site / file).is_file(), (name, target)
            if address.fragment and target != "#main":
                assert address.fragment in {e.attributes.get("id") for e in known[file].elements}, (name, target)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    site = site_of(hostile(), tmp_path)
    for name, page in pages(site).items():
        assert "1337" not in page.visible, name
        for element in page.elements:
            assert element.tag != "script" or element.attributes.get("type") == "module", name
            assert "onerror" not in element.attributes, name
            for value in (element.attributes.get("href", ""), element.attributes.get("src", "")):
                assert not value.lower().startswith(("javascript:", "data:")), (name, value)
                assert "pw@" not in value
    assert "<script>alert(1)</script>" in pages(site)["index.html"].visible


def test_hostile_names_stay_in_the_generation(tmp_path: Path) -> None:
    site = site_of(hostile(), tmp_path / "site").resolve()
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(site)]
    assert outside == []
    assert all(len(p.name.encode()) <= 255 for p in site.rglob("*"))
    assert not [p for p in site.rglob("*") if p.name.startswith(".")]


def test_a_page_shows_the_state_of_each_ref_and_since_when(tmp_path: Path) -> None:
    site = site_of(catalogue(), tmp_path)
    text = pages(site)["repositories/gh/ann~course/index.html"].visible
    for words in (
        "main default branch Ready since 23 Nov 2026, 12:29 UTC",
        "teach/week-2 branch Building since 23 Nov 2026, 12:28 UTC",
        "v1.0 tag Queued",
        "v0.1 tag Builds on click",
        "The repository's build failed. Read the last lines of the log",
        "No such package.",
    ):
        assert words in text
    times = pages(site)["index.html"].all("time")
    assert times[0].attributes["datetime"] == "2026-11-23T12:29:00Z"


def test_the_home_page_shows_the_first_refs_and_says_how_many_there_are(tmp_path: Path) -> None:
    text = pages(site_of(catalogue(), tmp_path))["index.html"].visible
    assert "All 5 branches and tags" in text
    assert "v0.1" not in text


def test_the_default_branch_comes_first_wherever_it_stands(tmp_path: Path) -> None:
    entries = repository(refs=(tag("v1.0", 3), branch("alpha", 2), branch("main", 1)))
    text = pages(site_of(catalogue(entries), tmp_path))["index.html"].visible
    assert text.index("main") < text.index("alpha") < text.index("v1.0")


def test_badges_say_what_a_click_meets(tmp_path: Path) -> None:
    badges = site_of(catalogue(), tmp_path) / "badges" / "gh" / "ann~course"
    said = {p.name: re.search(r"<title>launch: (.*)</title>", p.read_text()) for p in badges.iterdir()}
    assert {name: match[1] if match else None for name, match in said.items()} == {
        "HEAD.svg": "ready",
        "main.svg": "ready",
        "teach~week-2.svg": "building",
        "v1.0.svg": "queued",
        "wip.svg": "failed",
        "v0.1.svg": "builds on click",
    }


def test_where_a_click_builds_nothing_no_page_says_that_it_does(tmp_path: Path) -> None:
    site = site_of(catalogue(on_demand="none"), tmp_path)
    assert "v0.1 tag Not built" in pages(site)["repositories/gh/ann~course/index.html"].visible
    assert "launch: not built" in (site / "badges" / "gh" / "ann~course" / "v0.1.svg").read_text()
    assert not [name for name, page in pages(site).items() if "Builds on click" in page.visible]


def test_a_branch_and_a_tag_of_one_name_have_the_branchs_badge(tmp_path: Path) -> None:
    entries = repository(refs=(tag("main", 4), branch("main", 1)))
    badge = site_of(catalogue(entries), tmp_path) / "badges" / "gh" / "ann~course" / "main.svg"
    assert "launch: ready" in badge.read_text()


def test_snippets_hold_the_public_address(tmp_path: Path) -> None:
    text = (site_of(catalogue(), tmp_path) / "repositories" / "gh" / "ann~course" / "index.html").read_text()
    assert (
        "[![Launch](https://launch.example.org/binder/badges/gh/ann~course/teach~week-2.svg)]"
        "(https://launch.example.org/binder/v2/gh/ann/course/teach/week-2)"
    ) in text


def test_the_launch_page_can_ask_where_a_repository_lands(tmp_path: Path) -> None:
    site = site_of(catalogue(repository(urlpath="lab/tree/a.ipynb")), tmp_path)
    summary = json.loads((site / "repositories" / "gh" / "ann~course" / "repository.json").read_text())
    assert summary == {
        "title": "The course",
        "url": "https://github.com/ann/course",
        "page": "repositories/gh/ann~course/",
        "urlpath": "lab/tree/a.ipynb",
    }


def test_a_problem_of_the_configuration_is_told_on_home_and_status(tmp_path: Path) -> None:
    site = site_of(catalogue(configuration_problem="prebinder.yaml:3: unknown key."), tmp_path)
    for name in ("index.html", "status/index.html"):
        assert "prebinder.yaml:3: unknown key." in pages(site)[name].visible


def test_a_provider_that_this_version_does_not_know_is_left_out(tmp_path: Path) -> None:
    site = site_of(catalogue(repository(), repository("x/y", provider="svn", title="From the future")), tmp_path)
    assert "From the future" not in pages(site)["index.html"].visible
    assert "The course" in pages(site)["index.html"].visible


def test_asset_names_change_with_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(catalogue(), tmp_path)
    launch = next((site / "assets").glob("launch-*.js"))
    for named in re.findall(r'from "\./([\w.-]+)"', launch.read_text()):
        assert re.fullmatch(r"(landing|link|log)-[0-9a-f]{10}\.js", named)
        assert (site / "assets" / named).is_file()
    style = next((site / "assets").glob("site-*.css")).read_text()
    fonts = re.findall(r'url\("\./([^"]+)"\)', style)
    assert fonts
    assert all((site / "assets" / font).is_file() for font in fonts)


@pytest.mark.parametrize("url", ["launch.example.org/", "https://launch.example.org", "ftp://x/", "javascript:x/", ""])
def test_a_public_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be an http or https address"):
        SiteSettings("Prebinder", url)


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_names_have_different_safe_segments(one: str, other: str) -> None:
    made = segment(one)
    assert re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", made)
    assert len(made) <= 200
    assert (made == segment(other)) == (one == other)


@given(st.text(alphabet="a/~._", min_size=1, max_size=6), st.text(alphabet="a/~._", min_size=1, max_size=6))
def test_segments_of_similar_names_differ(one: str, other: str) -> None:
    assert (segment(one) == segment(other)) == (one == other)


def test_long_names_differ_too() -> None:
    assert segment("x" * 300 + "a") != segment("x" * 300 + "b")
    assert len(segment("é" * 3000)) <= 200


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://github.com/a/b", True),
        ("http://127.0.0.1:8080/x", True),
        ("javascript:alert(1)", False),
        ("//elsewhere.example", False),
        ("https://", False),
        ("https://a b/", False),
        ('https://a/"onclick=', False),
        ("http://[::bad", False),
        ("git://host/x", False),
        ("", False),
    ],
)
def test_only_web_addresses_become_links(url: str, safe: bool) -> None:
    assert web_address(url) == (url if safe else None)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.4 s"), (42.2, "42 s"), (83, "1 min 23 s"), (7500, "2 h 5 min")]
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_generator_reads_no_clock() -> None:
    assert "datetime" not in vars(generator)
