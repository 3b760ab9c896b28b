"""The one place that builds Binder URLs and judges landing paths.

Landing paths (`urlpath`, `labpath`, `filepath`) come from links that anybody can write. Requirement: the address that
the browser finally opens is on the user's own server, whatever the link holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from prebinder.model.failure import FailureKind, PrebinderError
from prebinder.model.spec import Repository, Spec

_CONTROL_OR_BACKSLASH = re.compile(r"[\x00-\x1f\x7f\\]")
MAX_LANDING_LENGTH = 4096


class LandingError(PrebinderError):
    """A landing path that would leave the user's own server, or that no server could serve."""

    kind = FailureKind.REFUSED


def launch_path(repository: Repository, ref: str) -> str:
    """`/v2/<provider>/<repository>/<ref>`."""
    return f"/v2/{Spec(repository, ref)}"


def build_path(repository: Repository, ref: str) -> str:
    """`/build/<provider>/<repository>/<ref>`."""
    return f"/build/{Spec(repository, ref)}"


def landing_path(query: Mapping[str, str]) -> str:
    """The path on the user's server that a launch link's query names, relative to the server's base, or "".

    `labpath` opens in JupyterLab, else `filepath` in the classic tree, else `urlpath` as it is (BinderHub's order).
    Raises LandingError.
    """
    if path := query.get("labpath"):
        return check_landing("doc/tree/" + quote(path.lstrip("/"), safe="/"))
    if path := query.get("filepath"):
        return check_landing("tree/" + quote(path.lstrip("/"), safe="/"))
    return check_landing(query.get("urlpath") or "")


def check_landing(path: str) -> str:
    """Return `path` without leading slashes if it stays below any base it is joined to; raise LandingError if not.

    No `..` at all: even one that stays below may mean something else to a server in between.
    Join, parse, compare (WHATWG URL and RFC 3986 differ on backslashes and controls, so those are refused first).
    """
    if len(path) > MAX_LANDING_LENGTH:
        raise LandingError(f"The link's landing path is longer than {MAX_LANDING_LENGTH} characters.")
    if _CONTROL_OR_BACKSLASH.search(path) or _CONTROL_OR_BACKSLASH.search(unquote(path.partition("?")[0])):
        raise LandingError("The link's landing path has control characters or backslashes.")
    relative = path.lstrip("/")
    base = "http://user.invalid/user/name/"
    try:
        joined = urlsplit(urljoin(base, relative))
        scheme = urlsplit(relative).scheme
    except ValueError:
        raise LandingError("The link's landing path is not a URL path.") from None
    segments = unquote(re.split(r"[?#]", relative, maxsplit=1)[0]).split("/")
    if (
        scheme
        or (joined.scheme, joined.netloc) != ("http", "user.invalid")
        or not joined.path.startswith("/user/name/")
        or ".." in segments
    ):
        raise LandingError("The link's landing path leaves the user's own server.")
    return relative


def server_address(url: str, token: str, landing: str) -> str:
    """Where the browser goes: the server's `url` (ends in a slash), the landing path, and the token.

    A query inside the landing path (nbgitpuller) survives; the token is added to it.
    """
    rest, hash_mark, fragment = check_landing(landing).partition("#")
    path, _, query = rest.partition("?")
    return f"{url}{path}?{query}{'&' if query else ''}{urlencode({'token': token})}{hash_mark}{fragment}"
