"""The site's pages as values and templates: what each page shows, in the order in which it shows it.

Everything in a catalogue that a repository's owner wrote (titles, commit summaries, names of refs, failure messages) is
untrusted text: Jinja escapes it, and addresses pass `web_address`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prebinder.model.catalogue import Catalogue, ImageState, RefEntry, RefKind, RepositoryEntry, RevisionEntry
from prebinder.model.events import BuildState
from prebinder.model.failure import Disposition, FailureKind, SpecError
from prebinder.model.links import launch_path
from prebinder.model.spec import HEAD, Provider, Repository, check_ref
from prebinder_site.site.addresses import repository_segment, segment, web_address
from prebinder_site.site.asset_files import Assets

log = structlog.get_logger(__name__)

_HERE = Path(__file__).parent
_PICTURES = ("badge_logo.svg", "badge.svg", "logo_social.png", "favicon.svg")
_FORM_PROVIDERS = (Provider.GITHUB, Provider.GIT)
_REFS_ON_HOME = 4
_MANY = 60
"""From this many repositories on, the home page shows one ref of each."""

STATE_LABELS = {
    ImageState.READY: "Ready",
    ImageState.BUILDING: "Building",
    ImageState.QUEUED: "Queued",
    ImageState.FAILED: "Failed",
    ImageState.ABSENT: "Builds on click",
}
_BUILD_LABELS = {
    BuildState.QUEUED: "Queued",
    BuildState.RUNNING: "Building",
    BuildState.READY: "Ready",
    BuildState.FAILED: "Failed",
    BuildState.CANCELLED: "Cancelled",
}
_BUILD_STYLES = {BuildState.RUNNING: "building", BuildState.CANCELLED: "absent"}
_NOT_BUILT = "Not built"
"""What `absent` is called where a click builds nothing."""
_BADGES = {
    ImageState.READY: "#1a7f4b",
    ImageState.BUILDING: "#9a6200",
    ImageState.QUEUED: "#51607a",
    ImageState.FAILED: "#b3261e",
    ImageState.ABSENT: "#51607a",
}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A badge or link in one markup language, ready to copy."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class RevisionView:
    """One commit as a page shows it. Addresses are paths below the site's base."""

    revision: str
    short: str
    summary: str | None
    state: ImageState
    label: str
    since: datetime
    launch: str
    log: str | None
    failure: FailureKind | None
    message: str | None
    retried: bool
    """It failed, and is tried again by itself."""


@dataclass(frozen=True, slots=True)
class RefView:
    """A branch or tag as a page shows it."""

    name: str
    kind: RefKind
    default: bool
    launch: str
    badge: str
    commit: RevisionView | None
    snippets: tuple[Snippet, ...]


@dataclass(frozen=True, slots=True)
class RepositoryView:
    """A repository as pages show it."""

    key: str
    provider: str
    provider_name: str
    segment: str
    name: str
    title: str
    description: str
    url: str | None
    page: str
    launch: str
    """Launches the default branch."""
    refs: tuple[RefView, ...]
    commits: tuple[RevisionView, ...]
    looked_at: datetime | None
    fed_by_webhook: bool
    problem: str | None
    urlpath: str | None


class Pages:
    """Renders every page of one generation."""

    def __init__(self, title: str, url: str, base: str, api: str, assets: Assets) -> None:
        self._url = url
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters |= {"iso": iso, "moment": moment, "duration": duration}
        self._environment.globals |= {
            "site_title": title,
            "site_url": url,
            "base": base,
            "api": api,
            "asset": assets.address,
        }

    def render(self, catalogue: Catalogue) -> Iterator[tuple[str, bytes]]:
        """Pairs of a path within the site and the file's content."""
        labels = STATE_LABELS
        if catalogue.on_demand == "none":
            labels = {**STATE_LABELS, ImageState.ABSENT: _NOT_BUILT}
        self._environment.globals["state_labels"] = labels
        views = tuple(self._repositories(catalogue, labels))
        many = len(views) > _MANY
        yield self._page(
            "index.html",
            repositories=views,
            refs_shown=1 if many else _REFS_ON_HOME,
            providers=_FORM_PROVIDERS,
            catalogue=catalogue,
        )
        yield self._page(
            "status/index.html",
            "status.html",
            repositories=views,
            builds=_builds(catalogue, views),
            catalogue=catalogue,
        )
        yield self._page("about/index.html", "about.html", catalogue=catalogue)
        yield self._page("launch.html", failures=tuple(FailureKind), steps=_STEPS)
        yield self._page("404.html")
        yield "robots.txt", b"User-agent: *\nDisallow: /v2/\nDisallow: /build/\nDisallow: /builds/\n"
        badges = {state: self._badge(state, labels) for state in ImageState}
        for view in views:
            yield self._page(f"{view.page}index.html", "repository.html", repository=view)
            yield f"{view.page}repository.json", _summary(view)
            folder = f"badges/{view.provider}/{view.segment}"
            # A branch and a tag of the same name: a link means the branch, so the badge does too.
            states = {r.name: r.commit.state if r.commit else ImageState.ABSENT for r in reversed(view.refs)}
            default = next((r.name for r in view.refs if r.default), None)
            if default is not None:
                states[HEAD] = states[default]
            for name, state in states.items():
                yield f"{folder}/{segment(name)}.svg", badges[state]

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """The pictures whose addresses Binder's clients know."""
        for name in _PICTURES:
            yield name, (_HERE / "pictures" / name).read_bytes()

    def _page(self, path: str, template: str | None = None, **values: object) -> tuple[str, bytes]:
        return path, self._environment.get_template(template or path).render(**values).encode()

    def _badge(self, state: ImageState, labels: Mapping[ImageState, str]) -> bytes:
        text, colour = labels[state].lower(), _BADGES[state]
        width = 10 + round(len(text) * 6.3)
        return self._environment.get_template("badge.svg").render(text=text, colour=colour, width=width).encode()

    def _repositories(self, catalogue: Catalogue, labels: Mapping[ImageState, str]) -> Iterator[RepositoryView]:
        seen: set[str] = set()
        for entry in catalogue.repositories:
            try:
                repository = Repository(Provider(entry.provider), entry.name)
            except ValueError:
                log.warning("site.provider_unknown", repository=entry.repository, left_out=True)
                continue
            view = self._repository(entry, repository, labels)
            if view.page not in seen:
                seen.add(view.page)
                yield view

    def _repository(
        self, entry: RepositoryEntry, repository: Repository, labels: Mapping[ImageState, str]
    ) -> RepositoryView:
        name = repository_segment(entry.provider, entry.name)
        commits = {r.revision: _commit(repository, r, labels) for r in entry.revisions}
        refs = sorted(
            (self._ref(repository, r, name, entry.default_branch, commits) for r in entry.refs if _launchable(r.name)),
            key=lambda r: (not r.default, r.kind is not RefKind.BRANCH),
        )
        return RepositoryView(
            key=entry.repository,
            provider=entry.provider,
            provider_name=repository.provider.display_name,
            segment=name,
            name=entry.name,
            title=entry.title,
            description=entry.description,
            url=web_address(entry.url),
            page=f"repositories/{entry.provider}/{name}/",
            launch=launch_path(repository, HEAD).removeprefix("/"),
            refs=tuple(refs),
            commits=tuple(commits.values()),
            looked_at=entry.looked_at,
            fed_by_webhook=entry.fed_by_webhook,
            problem=entry.problem,
            urlpath=entry.urlpath,
        )

    def _ref(
        self,
        repository: Repository,
        ref: RefEntry,
        repository_name: str,
        default_branch: str | None,
        commits: dict[str, RevisionView],
    ) -> RefView:
        launch = launch_path(repository, ref.name).removeprefix("/")
        badge = f"badges/{repository.provider}/{repository_name}/{segment(ref.name)}.svg"
        return RefView(
            name=ref.name,
            kind=ref.kind,
            default=ref.kind is RefKind.BRANCH and ref.name == default_branch,
            launch=launch,
            badge=badge,
            commit=commits.get(ref.revision),
            snippets=snippets(self._url + launch, self._url + badge),
        )


_STEPS = (
    ("find", "Find the image"),
    ("waiting", "Wait for a builder"),
    ("fetching", "Fetch the repository"),
    ("building", "Build the image"),
    ("pushing", "Store the image"),
    ("launching", "Start the server"),
    ("ready", "Open it"),
)


def snippets(launch: str, badge: str) -> tuple[Snippet, ...]:
    """The link, and a badge that links, in the languages in which READMEs are written.

    Both addresses are percent-escaped, and apostrophes and brackets in them too, so no markup can be broken by them.
    """
    launch, badge = (address.replace("'", "%27").replace("(", "%28").replace(")", "%29") for address in (launch, badge))
    return (
        Snippet("Link", launch),
        Snippet("Markdown", f"[![Launch]({badge})]({launch})"),
        Snippet("HTML", f'<a href="{launch}"><img src="{badge}" alt="Launch"></a>'),
        Snippet("reStructuredText", f".. image:: {badge}\n   :target: {launch}\n   :alt: Launch"),
    )


def iso(at: datetime) -> str:
    """For `<time datetime>`: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(at: datetime) -> str:
    """For people, where no script makes it relative."""
    utc = at.astimezone(UTC)
    return f"{utc.day} {utc:%b %Y, %H:%M} UTC"


def duration(seconds: float) -> str:
    """For people: `8 s`, `1 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _launchable(ref: str) -> bool:
    """No link can name what is not a ref (git itself would refuse it, but a host may say anything)."""
    try:
        return bool(check_ref(ref))
    except SpecError:
        return False


def _commit(repository: Repository, entry: RevisionEntry, labels: Mapping[ImageState, str]) -> RevisionView:
    failed = entry.state is ImageState.FAILED
    return RevisionView(
        revision=entry.revision,
        short=entry.revision[:7],
        summary=entry.summary,
        state=entry.state,
        label=labels[entry.state],
        since=entry.since,
        launch=launch_path(repository, entry.revision).removeprefix("/"),
        log=f"builds/{segment(entry.build)}/log" if entry.build else None,
        failure=(entry.failure or FailureKind.INTERNAL) if failed else None,
        message=entry.message if failed else None,
        retried=failed and entry.failure is not None and entry.failure.disposition is Disposition.RETRY,
    )


def _builds(catalogue: Catalogue, views: tuple[RepositoryView, ...]) -> list[dict[str, object]]:
    known = {view.key: view for view in views}
    return [
        {
            "log": f"builds/{segment(b.id)}/log",
            "short": b.id[:8],
            "repository": known.get(b.repository),
            "name": known[b.repository].name if b.repository in known else b.repository,
            "ref": b.ref,
            "commit": b.revision[:7],
            "style": _BUILD_STYLES.get(b.state, b.state.value),
            "label": _BUILD_LABELS[b.state],
            "at": b.at,
            "seconds": b.seconds,
            "failure": b.failure,
        }
        for b in catalogue.recent_builds
    ]


def _summary(view: RepositoryView) -> bytes:
    """What the launch page asks about a registered repository."""
    return json.dumps({"title": view.title, "url": view.url, "page": view.page, "urlpath": view.urlpath}).encode()
