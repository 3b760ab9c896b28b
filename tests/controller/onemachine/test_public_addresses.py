"""Under which addresses browsers are sent to site and servers."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import pytest

from prebinder import compose
from prebinder.config import Configuration


def configured(**site: Any) -> Configuration:
    return Configuration.model_validate({"site": site})


@pytest.mark.parametrize(
    ("site", "url", "host"),
    [
        ({}, "http://127.0.0.1:8585/", "127.0.0.1"),
        ({"address": "10.1.2.3"}, "http://10.1.2.3:8585/", "10.1.2.3"),
        ({"address": "fd00::1"}, "http://[fd00::1]:8585/", "[fd00::1]"),
        ({"address": "0.0.0.0", "url": "https://b.example.org/x"}, "https://b.example.org/x/", "b.example.org"),
        ({"url": "https://[fd00::2]:444"}, "https://[fd00::2]:444/", "[fd00::2]"),
    ],
)
def test_servers_are_where_the_site_is(site: dict[str, Any], url: str, host: str) -> None:
    assert compose.public_url(configured(**site), 8585) == url
    assert compose.public_host(configured(**site)) == host


def test_on_all_addresses_it_is_the_one_that_others_reach() -> None:
    """A lecturer's students are not sent to their own machines; where there is no way out, to this one's loopback."""
    everywhere = configured(address="0.0.0.0")
    shown = urlsplit(compose.public_url(everywhere, 8585)).hostname
    assert shown == compose.public_host(everywhere)
    assert not ipaddress.ip_address(shown or "").is_unspecified
