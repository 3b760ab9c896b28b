"""How long browsers keep what the endpoint serves."""

from __future__ import annotations

import pytest

from prebinder_site.static import make_page


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("/assets/launch-0a1b2c3d4e.js", b"public, max-age=31536000, immutable"),
        ("/assets/launch.js", b"no-cache"),
        ("/badges/gh/ada/course/course-20250901.svg", b"no-cache"),
        ("/repo/gh/ada/course.html", b"no-cache"),
    ],
)
def test_only_what_has_the_hash_of_its_content_in_its_name_is_kept(name: str, kept: bytes) -> None:
    assert dict(make_page(name, b"x").headers)[b"cache-control"] == kept
