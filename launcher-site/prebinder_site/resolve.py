"""From a link to a revision, at the click: from memory when memory is fresh, else from the Git host in a small budget.

A repository that is fed by webhooks is as the last webhook said. A polled one is looked at again when its last look is
older than configured; when the host does not answer in time, the last known revision is used and its age is said.
Full commit ids need no host. When the click knows no host for a provider, the controller resolves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cachetools import TTLCache

from prebinder.hosts.base import Host
from prebinder.model.failure import HostError, HostUnavailable, RefNotFound
from prebinder.model.spec import Provider, Repository, Spec, is_revision
from prebinder_site.catalogue import Index, Registered
from prebinder_site.sharing import SharedCalls

_PAUSE_AFTER_SILENCE = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a link names. `revision` is None when only the controller can tell."""

    spec: Spec
    """In the registered spelling."""
    revision: str | None
    registered: Registered | None
    notices: tuple[str, ...] = ()
    """What the person should know about how the ref was resolved."""


@dataclass(frozen=True, slots=True)
class _Seen:
    revision: str
    at: datetime


class Resolver:
    """Resolves for one endpoint. Asks the same question once, however many click."""

    def __init__(
        self,
        hosts: Mapping[Provider, Host],
        *,
        stale_after: float,
        click_budget: float,
        host_timeout: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._hosts = hosts
        self._stale_after = timedelta(seconds=stale_after)
        self._click_budget = click_budget
        self._host_timeout = host_timeout
        self._clock = clock
        self._questions: SharedCalls[Spec, _Seen] = SharedCalls(ttl=max(stale_after, 0.001))
        self._silent_until: TTLCache[Repository, datetime] = TTLCache(
            maxsize=4096, ttl=_PAUSE_AFTER_SILENCE.total_seconds()
        )

    async def resolve(self, spec: Spec, index: Index) -> Resolved:
        """Raises RefNotFound, RepositoryNotFound or HostUnavailable."""
        registered = index.find(spec.repository)
        if registered is not None:
            spec = Spec(registered.repository, spec.ref)
        notices: tuple[str, ...] = ()
        if is_revision(spec.ref):
            return Resolved(spec, spec.ref, registered)
        if registered is not None and (known := registered.revision_of(spec.ref)):
            if registered.falls_back_to_head(spec.ref):
                default = registered.entry.default_branch or "its default branch"
                notices = (f"There is no branch {spec.ref}; HEAD ({default}) is used instead.\n",)
            revision, said = await self._freshest(spec, registered, known)
            return Resolved(spec, revision, registered, notices + said)
        host = self._hosts.get(spec.repository.provider)
        if host is None or (registered is None and not _strangers_allowed(index)):
            return Resolved(spec, None, registered)
        try:
            async with asyncio.timeout(self._host_timeout):
                seen = await self._questions.ask(spec, lambda: self._ask(host, spec))
        except TimeoutError:
            raise HostUnavailable(_silent(spec.repository.provider) + " Try again in a few minutes.") from None
        return Resolved(spec, seen.revision, registered)

    async def _freshest(self, spec: Spec, registered: Registered, known: str) -> tuple[str, tuple[str, ...]]:
        """The revision to use, when `known` is what memory holds, and what to say about it."""
        entry, now = registered.entry, self._clock()
        looked_at = entry.looked_at
        seen = self._questions.kept(spec)
        # Whatever was seen last is right: the catalogue moves on by webhooks and rounds.
        if seen is not None and (looked_at is None or seen.at >= looked_at):
            return seen.revision, ()
        host = self._hosts.get(spec.repository.provider)
        fresh = looked_at is not None and now - looked_at <= self._stale_after
        if entry.fed_by_webhook or fresh or host is None:
            return known, ()
        if self._silent_until.get(spec.repository, now) > now:
            return known, (self._aged(spec, known, looked_at, now),)
        try:
            question = self._questions.start(spec, lambda: self._ask(host, spec))
            async with asyncio.timeout(self._click_budget):
                return (await asyncio.shield(question)).revision, ()
        except RefNotFound:
            raise
        except (HostError, TimeoutError):
            # Also RepositoryNotFound: a host that hides a repository for an hour must not break working links.
            self._silent_until[spec.repository] = now + _PAUSE_AFTER_SILENCE
            return known, (self._aged(spec, known, looked_at, now),)

    async def _ask(self, host: Host, spec: Spec) -> _Seen:
        asked_at = self._clock()
        try:
            async with asyncio.timeout(self._host_timeout):
                revision = await host.resolve(spec)
        except TimeoutError:
            raise HostUnavailable(_silent(spec.repository.provider)) from None
        self._silent_until.pop(spec.repository, None)
        return _Seen(revision, asked_at)

    @staticmethod
    def _aged(spec: Spec, revision: str, looked_at: datetime | None, now: datetime) -> str:
        age = f", last seen {_ago(now - looked_at)}" if looked_at else ""
        return f"{_silent(spec.repository.provider)} Using {spec.ref} as known here: {revision[:7]}{age}.\n"

    async def aclose(self) -> None:
        await self._questions.aclose()


def _strangers_allowed(index: Index) -> bool:
    """Whether a host may be asked about a repository that nobody registered. If not, the controller says no: links
    are anybody's, and must not make us knock at any address."""
    return index.catalogue.on_demand == "anyone"


def _silent(provider: Provider) -> str:
    return f"The Git host ({provider.display_name}) did not answer in time."


def _ago(age: timedelta) -> str:
    seconds = max(0, int(age.total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'' if seconds == 1 else 's'} ago"
