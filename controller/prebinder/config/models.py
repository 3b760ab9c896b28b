"""The configuration file's models: every key, its type, default and meaning.

The JSON Schema (`prebinder config schema`) and the reference page in docs/ come from these models, so a description
here is what an operator reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from prebinder.config.kubernetes import KubernetesConfig
from prebinder.config.prepull import PrepullConfig
from prebinder.config.values import Bytes, Seconds, Section
from prebinder.model.catalogue import RepositoryEntry
from prebinder.model.events import Priority
from prebinder.model.failure import SpecError
from prebinder.model.policy import BuildRule, Policy, check_tag_pattern
from prebinder.model.spec import HEAD, Repository, git_url, github


class SecretRef(Section):
    """A secret by reference: exactly one of `env` and `file`."""

    env: str | None = None
    """Name of an environment variable that holds the secret."""
    file: Path | None = None
    """Path of a file that holds the secret; whitespace around it is cut."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("write either {env: NAME} or {file: PATH}")
        self.read()
        return self

    def read(self) -> SecretStr:
        """The secret now. Raises ValueError, without the secret, when it is not there."""
        if self.env is not None:
            value = os.environ.get(self.env)
            if not value:
                raise ValueError(f"the environment variable {self.env} is not set")
            return SecretStr(value)
        assert self.file is not None
        try:
            value = self.file.read_text().strip()
        except OSError as error:
            raise ValueError(f"the file {self.file} cannot be read: {error.strerror}") from None
        if not value:
            raise ValueError(f"the file {self.file} is empty")
        return SecretStr(value)


def _no_plain_secret(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("a secret is never written into the file; write {env: NAME} or {file: PATH}")
    return value


Secret = Annotated[SecretRef, BeforeValidator(_no_plain_secret)]
TagPattern = Annotated[str, AfterValidator(check_tag_pattern)]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_OneOrMany = BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...])
Patterns = Annotated[tuple[str, ...], _OneOrMany]
"""One pattern, or a list of them."""
TagPatterns = Annotated[tuple[TagPattern, ...], _OneOrMany]


class RepositoryConfig(Section):
    """One registered repository. Exactly one of `github` and `git` names it."""

    github: str | None = None
    """`owner/repository` on GitHub."""
    git: str | None = None
    """URL of any Git repository: http, https, ssh or git."""
    title: str | None = None
    """What the site calls it; the repository's name by default."""
    description: str = ""
    """One or two sentences for the site."""
    branches: Patterns = (HEAD,)
    """Branches to prebuild: names or shell patterns such as `teach/*`; `HEAD` is the default branch."""
    tags: TagPatterns = ("release",)
    """Tags to prebuild: names, shell patterns, version specifiers such as `>=2.0`, or `release` for final versions."""
    build: BuildRule = BuildRule.EVERY_COMMIT
    """`every-commit` builds each commit that a push brings; `newest` only where the branch then stands."""
    priority: Literal[Priority.HIGH, Priority.NORMAL, Priority.LOW] = Priority.NORMAL
    """Order in the queue; a waiting person always comes before."""
    build_pack: Literal["auto", "pip"] | None = None
    """`pip` installs `requirements.txt` with pip alone (seconds, not minutes); `auto` is repo2docker's choice."""
    urlpath: str | None = None
    """Where a launch lands unless the link says otherwise, for example `lab/tree/index.ipynb`."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.github is None) == (self.git is None):
            raise ValueError("name the repository with either github: owner/repository or git: URL")
        try:
            _ = self.repository
        except SpecError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def repository(self) -> Repository:
        if self.github is not None:
            return github(self.github)
        assert self.git is not None
        return git_url(self.git)

    @property
    def policy(self) -> Policy:
        return Policy(self.branches, self.tags, self.build)

    def entry(self, url: str) -> RepositoryEntry:
        """What the catalogue says of it before anybody looked. `url` is where people read it."""
        repository = self.repository
        return RepositoryEntry(
            repository=str(repository),
            provider=repository.provider.value,
            name=repository.name,
            title=self.title or repository.name,
            description=self.description,
            url=url,
            urlpath=self.urlpath,
        )


class GitHubConfig(Section):
    """How to reach GitHub or a GitHub Enterprise server."""

    token: Secret | None = None
    """A token with read access (and `repo:status` to report statuses)."""
    api_url: str = "https://api.github.com"
    """Address of the REST API."""
    url: str = "https://github.com"
    """Address that repositories are cloned from."""
    webhook_secret: Secret | None = None
    """Secret of the webhook at `/hooks/github`; without it that route is closed."""
    report_status: bool = False
    """Write the state of each build to the commit on GitHub."""


class GitConfig(Section):
    """How to reach plain Git repositories."""

    webhook_secret: Secret | None = None
    """Secret of the signed webhook at `/hooks/git`; without it that route is closed."""


class HostsConfig(Section):
    """The Git hosts."""

    github: GitHubConfig = GitHubConfig()
    """GitHub."""
    git: GitConfig = GitConfig()
    """Any other Git server."""
    timeout: Seconds = 20.0
    """Time limit of one question to a Git host."""


class PollingConfig(Section):
    """How often Git hosts are asked when no webhook comes."""

    interval: Seconds = Field(300.0, ge=1)
    """Pause between two looks at the same repository."""
    jitter: Seconds = 30.0
    """Up to this much is added at random to the pause, so that not all repositories are asked at once."""
    stale_after: Seconds = 60.0
    """At a click, a polled ref older than this is resolved again."""
    click_budget: Seconds = 0.3
    """How long a click waits for that; then the last known revision is used, labelled with its age."""


class LimitsConfig(Section):
    """Limits of one build and of the queue."""

    parallel: int = Field(2, ge=1, le=64)
    """Builds that run at the same time."""
    parallel_per_repository: int = Field(0, ge=0, le=64)
    """The same for one repository; 0 is no limit."""
    time: Seconds = Field(1800.0, gt=0)
    """Longest time of one build."""
    memory: Bytes = Field(4 * 10**9, gt=0)
    """Most memory of a build's containers."""
    log: Bytes = Field(10 * 10**6, gt=0)
    """Most log that a build may write."""
    disk: Bytes = Field(10 * 10**9, gt=0)
    """Most disk that a build may fill: checkout and new layers."""
    attempts: int = Field(4, ge=1, le=20)
    """Attempts at a build whose surroundings fail (Git host, registry, engine)."""
    backoff: Seconds = 5.0
    """Pause before the second attempt; it doubles each time, to at most `backoff_max`."""
    backoff_max: Seconds = 600.0
    """Longest pause between two attempts."""
    queue: int = Field(1000, ge=1)
    """Builds that may wait; further requests on demand are refused with a clear answer."""
    commits: int = Field(50, ge=1, le=1000)
    """With `every-commit`: most commits of one push that are built."""


class BuilderConfig(Section):
    """What builds images."""

    kind: Literal["local", "kubernetes"] = "local"
    """`local` builds on this machine with its container engine, `kubernetes` runs each build as a Job."""
    suspend: bool = False
    """Start no further build until this is false again; running ones go on, wanted ones wait."""
    engine: Literal["auto", "podman", "docker"] = "auto"
    """Container engine on one machine; `auto` takes podman, else docker."""
    build_pack: Literal["auto", "pip"] = "auto"
    """Default for repositories that do not choose."""
    base_image: str | None = None
    """Base image of builds. When not set: for `auto` repo2docker's own; for `pip` a slim Python, which on Kubernetes
    is the one that the builder image holds, so that no build unpacks any."""
    content_providers: tuple[Literal["git", "all"], ...] = ("git",)
    """repo2docker content providers: `git` alone, or `all` (archives such as Zenodo; needs the internet)."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """Builds as Jobs."""


class RegistryConfig(Section):
    """Where images are kept. Without `prefix`, in the container engine's own store (one machine only)."""

    prefix: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._:/-]*$", max_length=150)
    """Registry, path and beginning of every image's name, for example `registry.example.org/binder/`."""
    credentials: Path | None = None
    """A Docker `config.json` with the registry's credentials."""
    insecure: bool = False
    """Speak plain HTTP to the registry."""
    timeout: Seconds = 10.0
    """Time limit of one question to the registry."""

    @property
    def image_prefix(self) -> str:
        return self.prefix if self.prefix is not None else "localhost/prebinder/"


class CullConfig(Section):
    """When idle servers are stopped."""

    idle: Seconds = Field(600.0, ge=1)
    """A server that nobody used for this long is stopped, and its user removed."""
    every: Seconds = Field(60.0, ge=1)
    """Pause between two looks."""
    max_age: Seconds = 0.0
    """Servers older than this are stopped even when used; 0 is never."""


class HubConfig(Section):
    """JupyterHub, which starts and culls servers."""

    url: str | None = None
    """Address of a JupyterHub that is there already; without it `prebinder up` starts one beside itself."""
    public_url: str | None = None
    """The same as browsers reach it. By default `url`; for the one beside `prebinder up`, the site's host."""
    token: Secret | None = None
    """API token of the Hub's service for Prebinder; needed with `url`."""
    port: int | None = Field(None, ge=1, le=65535)
    """Port on which `prebinder up` puts the Hub's proxy; by default the site's port plus one, or else any free one."""
    cull: CullConfig = CullConfig()
    """Culling of idle servers."""
    memory: Bytes = 2 * 10**9
    """Memory limit of a user's server."""
    cpu: float = Field(0, ge=0)
    """CPU limit of a user's server, in cores; 0 is none."""
    start_timeout: Seconds = 120.0
    """Longest time that a server may take to start."""
    max_servers: int = Field(0, ge=0)
    """Servers that may run at the same time; 0 is no limit."""

    @model_validator(mode="after")
    def _token_with_url(self) -> Self:
        if self.url is not None and self.token is None:
            raise ValueError("hub.url needs hub.token: the API token of the Hub's service for Prebinder")
        return self


class SiteConfig(Section):
    """The launch site."""

    title: str = "Prebinder"
    """Name of the site."""
    address: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = Field(8585, ge=0, le=65535)
    """Port to listen on; 0 picks a free one."""
    url: str | None = None
    """The site as browsers reach it, for badges and links; http://address:port/ by default."""
    allow_origin: str = "*"
    """`Access-Control-Allow-Origin` of `/build` and `/versions`; thebe and myst pages of other sites need it."""
    build_only: bool = True
    """Whether `/build/…?build_only=true` is answered."""


class ControllerConfig(Section):
    """The controller's own HTTP API, for a controller that runs apart from the launch endpoint."""

    address: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8587, ge=0, le=65535)
    """Port to listen on."""
    url: str | None = None
    """Where the launch endpoint finds the controller; http://address:port by default."""
    token: Secret | None = None
    """Bearer token between the two; needed when the controller listens on more than this machine."""
    lease: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    """Kubernetes: name of a Lease in the controller's namespace. Of several controllers (which need a PostgreSQL
    ledger) the one that holds it is active, the others stand by."""


class LedgerConfig(Section):
    """The controller's database."""

    url: str | None = None
    """SQLAlchemy URL; a SQLite file in the state folder by default."""


class Configuration(Section):
    """The whole file."""

    repositories: tuple[RepositoryConfig, ...] = ()
    """The registered repositories."""
    on_demand: Literal["registered", "anyone", "none"] = "registered"
    """What a click may build: other refs of `registered` repositories, any repository (`anyone`), or nothing."""
    hosts: HostsConfig = HostsConfig()
    """Git hosts."""
    polling: PollingConfig = PollingConfig()
    """Looking without webhooks."""
    limits: LimitsConfig = LimitsConfig()
    """Limits of builds and queue."""
    builder: BuilderConfig = BuilderConfig()
    """What builds."""
    registry: RegistryConfig = RegistryConfig()
    """Where images are kept."""
    hub: HubConfig = HubConfig()
    """JupyterHub."""
    site: SiteConfig = SiteConfig()
    """The launch site."""
    controller: ControllerConfig = ControllerConfig()
    """The controller's API."""
    ledger: LedgerConfig = LedgerConfig()
    """The database."""
    prepull: PrepullConfig = PrepullConfig()
    """Images that wait on the nodes for their click."""

    def find(self, repository: Repository) -> RepositoryConfig | None:
        """The registration of a repository, if any. GitHub ignores case in names, so this does too there."""
        for entry in self.repositories:
            have = entry.repository
            if have == repository or (
                have.provider == repository.provider == "gh" and have.name.casefold() == repository.name.casefold()
            ):
                return entry
        return None
