"""What a Binder URL names: `<provider>/<repository>/<ref>`.

Requirements, each of them tested:
- Anything may arrive here (paths of URLs are untrusted); only a well-formed spec comes out, or `SpecError`.
- Parsing decodes percent-escapes exactly once; what still looks escaped afterwards is refused, not decoded again.
- A repository that can be written in several ways has one `Repository` value, so that it has one image.
- Refs obey git-check-ref-format(1); no ref can be taken for an option of a command.

The shapes of specs and the spellings that clients in the wild send are those of BinderHub's `repoproviders.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from prebinder.model.failure import SpecError

MAX_SPEC_LENGTH = 2048
MAX_REF_LENGTH = 255
HEAD = "HEAD"

_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
# Control characters, space, and what git-check-ref-format(1) forbids anywhere in a ref.
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_BAD_IN_TEXT = re.compile(r"[\x00-\x20\x7f\\<>\"`{}|^]")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_SCP_LIKE = re.compile(r"(?P<user>[\w-]+)@(?P<host>[\w.-]+):(?P<path>[^/].*)")
GIT_SCHEMES = frozenset({"http", "https", "git", "ssh"})


class Provider(StrEnum):
    """BinderHub's word in URLs for a kind of Git host."""

    GITHUB = "gh"
    GITLAB = "gl"
    GIT = "git"
    GIST = "gist"

    @property
    def display_name(self) -> str:
        return {"gh": "GitHub", "gl": "GitLab", "git": "Git repository", "gist": "Gist"}[self.value]


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """One launchable repository.

    `name` is `owner/repo` (gh), the full namespace path (gl), the URL (git) or `user/id` (gist); never escaped.
    """

    provider: Provider
    name: str

    @property
    def escaped_name(self) -> str:
        """As it stands in a Binder URL: gl and git names are one escaped path segment."""
        if self.provider in (Provider.GITLAB, Provider.GIT):
            return quote(self.name, safe="")
        return self.name

    @property
    def build_slug(self) -> str:
        """BinderHub's build slug, from which image names are made (`repoproviders.py`, `get_build_slug`)."""
        match self.provider:
            case Provider.GITHUB:
                return self.name.replace("/", "-")
            case Provider.GITLAB:
                return "-".join(part.replace("-", "_-") for part in self.name.split("/"))
            case Provider.GIT:
                return self.name
            case Provider.GIST:
                return self.name.split("/", 1)[1]

    def __str__(self) -> str:
        return f"{self.provider}/{self.escaped_name}"


@dataclass(frozen=True, slots=True)
class Spec:
    """A repository and a ref as a person wrote it."""

    repository: Repository
    ref: str

    def __str__(self) -> str:
        return f"{self.repository}/{quote(self.ref, safe='/')}"

    def at(self, revision: str) -> Spec:
        """The same repository at a full commit id."""
        return Spec(self.repository, revision)


def is_revision(ref: str) -> bool:
    """Whether the whole of `ref` is a full commit id (40 or 64 lower-case hex digits)."""
    return _REVISION.fullmatch(ref) is not None


def check_ref(ref: str) -> str:
    """Return `ref` unchanged, or raise SpecError when git-check-ref-format(1) would refuse it."""
    if not ref:
        raise SpecError("The ref is empty. Name a branch, a tag or a commit, or HEAD for the default branch.")
    if len(ref.encode("utf-8", "replace")) > MAX_REF_LENGTH:
        raise SpecError(f"The ref is longer than {MAX_REF_LENGTH} bytes.")
    bad = (
        _BAD_IN_REF.search(ref)
        or ref.startswith(("-", "/", "."))
        or ref.endswith(("/", "."))
        or "/." in ref
        or any(part.endswith(".lock") for part in ref.split("/"))
        or ref == "@"
        or not ref.isprintable()
    )
    if bad:
        raise SpecError(f"{_shown(ref)} is not a valid name of a branch, tag or commit.")
    return ref


def parse_spec(provider: str, spec: str) -> Spec:
    """Parse what follows `/v2/<provider>/` or `/build/<provider>/` in a URL, still percent-escaped.

    Raises SpecError. Never raises anything else, whatever the text.
    """
    if len(spec) > MAX_SPEC_LENGTH:
        raise SpecError(f"The link is longer than {MAX_SPEC_LENGTH} characters.")
    try:
        kind = Provider(provider)
    except ValueError:
        known = ", ".join(p.value for p in Provider)
        raise SpecError(f"There is no provider {_shown(provider)}. Known are: {known}.") from None
    match kind:
        case Provider.GITHUB:
            return _parse_github(spec)
        case Provider.GITLAB:
            return _parse_gitlab(spec)
        case Provider.GIT:
            return _parse_git(spec)
        case Provider.GIST:
            return _parse_gist(spec)


def github(name: str) -> Repository:
    """The repository `owner/repo` on GitHub. GitHub ignores case, so the value is kept as written but `.git` is cut."""
    owner, slash, repo = name.partition("/")
    repo = repo.removesuffix(".git")
    if not slash or not _OWNER.fullmatch(owner) or not _NAME.fullmatch(repo) or repo in (".", ".."):
        raise SpecError(f"{_shown(name)} is not a GitHub repository; write owner/repository.")
    return Repository(Provider.GITHUB, f"{owner}/{repo}")


def gitlab(name: str) -> Repository:
    """The repository `group/…/project` on GitLab."""
    parts = name.removesuffix(".git").split("/")
    if len(parts) < 2 or not all(_NAME.fullmatch(p) and p not in (".", "..") and p[0] != "-" for p in parts):
        raise SpecError(f"{_shown(name)} is not a GitLab project; write group/project.")
    return Repository(Provider.GITLAB, "/".join(parts))


def git_url(url: str) -> Repository:
    """A repository at any URL that Git fetches over the network.

    Accepts `user@host:path` as ssh://. Refuses other schemes (ext::, file:, …), passwords in the URL, and anything that
    a command line could take for an option.
    """
    if scp := _SCP_LIKE.fullmatch(url):
        url = f"ssh://{scp['user']}@{scp['host']}/{scp['path']}"
    if _BAD_IN_TEXT.search(url) or not url.isprintable():
        raise SpecError(f"{_shown(url)} is not a Git URL: it has characters that must be percent-escaped.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise SpecError(f"{_shown(url)} is not a URL.") from None
    if parts.scheme not in GIT_SCHEMES:
        raise SpecError(
            f"{_shown(url)} cannot be fetched: the URL must start with {', '.join(sorted(GIT_SCHEMES))} and ://."
        )
    if not host or host.startswith("-") or (parts.username or "").startswith("-"):
        raise SpecError(f"{_shown(url)} names no host.")
    if parts.password is not None:
        raise SpecError("The Git URL holds a password. Put credentials into the configuration, not into links.")
    if parts.query or parts.fragment:
        raise SpecError(f"{_shown(url)} is not a Git URL: it has a query or fragment.")
    if any(segment in (".", "..") for segment in parts.path.split("/")) or parts.path in ("", "/"):
        raise SpecError(f"{_shown(url)} names no repository.")
    netloc = parts.netloc.lower() if parts.username is None else parts.netloc
    return Repository(Provider.GIT, urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", "")))


def gist(name: str) -> Repository:
    """The gist `user/id`."""
    user, slash, gist_id = name.partition("/")
    if not slash or not _OWNER.fullmatch(user) or not re.fullmatch(r"[0-9a-f]{5,64}", gist_id):
        raise SpecError(f"{_shown(name)} is not a gist; write user/id.")
    return Repository(Provider.GIST, f"{user}/{gist_id}")


def _parse_github(spec: str) -> Spec:
    parts = spec.split("/", 2)
    if len(parts) == 2 or (len(parts) == 3 and not parts[2]):
        raise SpecError(f"The link names no ref. Did you mean {_shown(f'gh/{parts[0]}/{parts[1]}/HEAD')}?")
    if len(parts) != 3:
        raise SpecError("A GitHub link is gh/owner/repository/ref.")
    return Spec(github(f"{_decode(parts[0])}/{_decode(parts[1])}"), check_ref(_decode(parts[2])))


def _parse_gitlab(spec: str) -> Spec:
    first, slash, rest = spec.partition("/")
    if "%2f" in first.lower():
        if not slash or not rest:
            raise SpecError(f"The link names no ref. Did you mean {_shown(f'gl/{first}/HEAD')}?")
        return Spec(gitlab(_decode(first)), check_ref(_decode(rest)))
    # Unescaped `org/repo/ref`, as some clients send it: two segments of name, the rest is the ref.
    parts = spec.split("/", 2)
    if len(parts) != 3 or not parts[2]:
        raise SpecError("A GitLab link is gl/group%2Fproject/ref.")
    return Spec(gitlab(f"{_decode(parts[0])}/{_decode(parts[1])}"), check_ref(_decode(parts[2])))


def _parse_git(spec: str) -> Spec:
    first, slash, rest = spec.partition("/")
    url = _decode(first)
    if re.fullmatch(r"(?:https?|git|ssh):", url) and rest.startswith("/"):
        # `https%3A//host/group/repository/ref`, as some clients send it: the last segment is the ref.
        path, _, ref = rest.removeprefix("/").rpartition("/")
        if not path or not ref:
            raise SpecError("A Git link is git/<escaped URL>/ref.")
        return Spec(git_url(f"{url}//{_decode(path)}"), check_ref(_decode(ref)))
    if not slash or not rest:
        raise SpecError("The link names no ref. A Git link is git/<escaped URL>/ref.")
    return Spec(git_url(url), check_ref(_decode(rest)))


def _parse_gist(spec: str) -> Spec:
    parts = spec.split("/", 2)
    if len(parts) < 2:
        raise SpecError("A gist link is gist/user/id or gist/user/id/revision.")
    ref = _decode(parts[2]) if len(parts) == 3 and parts[2] else HEAD
    return Spec(gist(f"{_decode(parts[0])}/{_decode(parts[1])}"), check_ref(ref))


def _decode(text: str) -> str:
    """Undo percent-escapes once; refuse what is not UTF-8 or still escaped afterwards."""
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise SpecError(f"{_shown(text)} is not UTF-8.") from None
    if _ESCAPED.search(decoded):
        raise SpecError(f"{_shown(text)} is percent-escaped twice; escape it once.")
    return decoded


def _shown(text: str) -> str:
    """Untrusted text for a message: quoted, without control characters, short."""
    short = text if len(text) <= 80 else text[:77] + "…"
    return '"' + "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in short) + '"'
