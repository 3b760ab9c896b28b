"""Landing paths on the Python side. The same table is run against the page's script in test_launch_page.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from prebinder.model.links import LandingError, check_landing, landing_path, server_address

CASES: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent.parent / "landing_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["check"], ids=lambda c: repr(c["path"]))
def test_a_landing_path_stays_on_the_users_server_or_is_refused(case: dict[str, Any]) -> None:
    if case["relative"] is None:
        with pytest.raises(LandingError):
            check_landing(case["path"])
    else:
        assert check_landing(case["path"]) == case["relative"]


@pytest.mark.parametrize("case", CASES["query"], ids=lambda c: c["query"])
def test_a_launch_links_query_names_a_landing_path(case: dict[str, Any]) -> None:
    query = dict(parse_qsl(case["query"], keep_blank_values=True))
    if case["landing"] is None:
        with pytest.raises(LandingError):
            landing_path(query)
    else:
        assert landing_path(query) == case["landing"]


@pytest.mark.parametrize("case", CASES["address"], ids=lambda c: c["landing"])
def test_the_token_is_added_to_the_query_that_is_there(case: dict[str, Any]) -> None:
    address = server_address("http://hub.example/user/ann/", "t0k-en_1", case["landing"])
    assert address == case["address"]
    assert urlsplit(address).path.startswith("/user/ann/")


def test_a_path_that_is_too_long_is_refused() -> None:
    assert check_landing("x" * 4096)
    with pytest.raises(LandingError, match="longer than 4096"):
        check_landing("x" * 4097)
