"""Landing paths: whatever a link holds, the browser stays on the user's own server."""

from __future__ import annotations

from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prebinder.model.links import (
    MAX_LANDING_LENGTH,
    LandingError,
    build_path,
    check_landing,
    landing_path,
    launch_path,
    server_address,
)
from prebinder.model.spec import git_url, github

SERVER = "https://hub.example.org/user/ada/"
nasty = st.text(alphabet=st.one_of(st.sampled_from("/\\.:%?#@2e5cFhtps\t\n"), st.characters()), max_size=60)


@given(st.one_of(nasty, st.text()))
@example("//evil.example")
@example("/\\evil.example")
@example("https:evil.example")
@example("%2e%2e/%2e%2e/hub/logout")
@example("\tjavascript:alert(1)")
@example("a/..%2f..%2fx")
def test_whatever_the_path_the_address_is_on_the_users_server(path: str) -> None:
    try:
        landing = check_landing(path)
    except LandingError:
        return
    address = server_address(SERVER, "token", landing)
    for joined in (address, urljoin(SERVER, landing)):
        parts = urlsplit(joined)
        assert (parts.scheme, parts.netloc) == ("https", "hub.example.org")
        assert parts.path.startswith("/user/ada/")
        assert ".." not in parts.path.split("/")
    assert "token" in parse_qs(urlsplit(address).query)["token"]


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "https:evil",
        "javascript:alert(1)",
        "..",
        "a/../../b",
        "%2e%2e/x",
        "a\\b",
        "a%5Cb",
        "a\nb",
        "a%0Ab",
        "x" * (MAX_LANDING_LENGTH + 1),
    ],
)
def test_paths_that_leave_the_server_are_refused(path: str) -> None:
    with pytest.raises(LandingError):
        check_landing(path)


@pytest.mark.parametrize(
    ("query", "landing"),
    [
        ({}, ""),
        ({"labpath": "a b/index.ipynb"}, "doc/tree/a%20b/index.ipynb"),
        ({"filepath": "index.ipynb"}, "tree/index.ipynb"),
        ({"urlpath": "lab/tree/x.ipynb"}, "lab/tree/x.ipynb"),
        ({"urlpath": "/rstudio"}, "rstudio"),
        ({"urlpath": "x", "filepath": "y", "labpath": "z"}, "doc/tree/z"),
        ({"urlpath": "git-pull?repo=https%3A%2F%2Fexample.org%2Fr&urlpath=lab"},) * 1
        + ("git-pull?repo=https%3A%2F%2Fexample.org%2Fr&urlpath=lab",),
    ],
)
def test_where_a_link_lands(query: dict[str, str], landing: str) -> None:
    assert landing_path(query) == landing


@pytest.mark.parametrize(
    ("landing", "address"),
    [
        ("", SERVER + "?token=t"),
        ("lab/x", SERVER + "lab/x?token=t"),
        ("git-pull?repo=r&branch=b", SERVER + "git-pull?repo=r&branch=b&token=t"),
        ("lab#part", SERVER + "lab?token=t#part"),
        ("lab?a=b#part", SERVER + "lab?a=b&token=t#part"),
    ],
)
def test_the_token_joins_a_query_that_is_there(landing: str, address: str) -> None:
    assert server_address(SERVER, "t", landing) == address


def test_binder_urls() -> None:
    assert launch_path(github("a/b"), "feature/x y") == "/v2/gh/a/b/feature/x%20y"
    assert build_path(git_url("https://example.org/r"), "main") == "/build/git/https%3A%2F%2Fexample.org%2Fr/main"
