"""Webhooks: what a Git host sends becomes builds at once, and a round that checks it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

import structlog

from prebinder.config import LiveConfiguration
from prebinder.hosts.base import Host, RefChanged
from prebinder.ledger import Ledger, Wish
from prebinder.model.catalogue import RefKind
from prebinder.model.failure import PrebinderError, WebhookRejected
from prebinder.model.images import ImageName, image_name
from prebinder.model.policy import Ref
from prebinder.model.spec import Provider, is_revision
from prebinder.reconcile.builds import Builds, Wanted
from prebinder.reconcile.errors import HookClosed
from prebinder.reconcile.metrics import Metrics
from prebinder.reconcile.plan import may_build_again, recipe
from prebinder.reconcile.views import RepositoryView

log = structlog.get_logger(__name__)

_HOOKS = {"github": Provider.GITHUB, "git": Provider.GIT}


class Webhooks:
    """Takes webhooks for the registered repositories."""

    def __init__(
        self,
        *,
        configuration: LiveConfiguration,
        ledger: Ledger,
        hosts: Mapping[Provider, Host],
        views: Mapping[str, RepositoryView],
        builds: Builds,
        metrics: Metrics,
        clock: Callable[[], datetime],
        ready: Callable[[ImageName, RepositoryView | None, str], Awaitable[str | None]],
        moved: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`ready` finds an image that is there; `moved` is told a repository whose refs a webhook moved."""
        self._configuration = configuration
        self._ledger = ledger
        self._hosts = hosts
        self._views = views
        self._builds = builds
        self._metrics = metrics
        self._clock = clock
        self._ready = ready
        self._moved = moved
        self._spawn = spawn

    async def take(self, provider: str, headers: Mapping[str, str], body: bytes) -> int:
        """Take a webhook; the number of refs that it moves here. `headers` has lower-case keys.

        A push to a branch that is wanted is queued at once, from what the webhook says; a round checks it afterwards.
        Raises HookClosed or WebhookRejected.
        """
        kind = _HOOKS.get(provider)
        host = self._hosts.get(kind) if kind else None
        hosts = self._configuration.current.hosts
        section = hosts.github if kind is Provider.GITHUB else hosts.git
        if kind is None or host is None or section.webhook_secret is None:
            raise HookClosed(
                f"No webhook is taken at /hooks/{provider[:40]}. Set hosts.{provider[:40]}.webhook_secret to open it."
                if provider in _HOOKS
                else "There is no such webhook. Known are: " + ", ".join(_HOOKS) + "."
            )
        try:
            changes = host.verify_webhook(headers, body)
        except WebhookRejected:
            self._metrics.webhooks.labels(provider, "rejected").inc()
            raise
        taken = 0
        for change in changes:
            registered = self._configuration.current.find(change.repository)
            view = self._views.get(str(registered.repository)) if registered else None
            if view is None:
                continue
            if change.delivery and not await self._ledger.first_delivery(provider, change.delivery, self._clock()):
                self._metrics.webhooks.labels(provider, "repeated").inc()
                continue
            taken += 1
            self._spawn(self._pushed(view, change))
        self._metrics.webhooks.labels(provider, "taken" if taken else "ignored").inc()
        return taken

    async def _pushed(self, view: RepositoryView, change: RefChanged) -> None:
        """A webhook: build what it names if that is wanted beyond doubt, then let a round look at everything."""
        now = self._clock()
        view.note(webhook_at=now)
        key = (RefKind.BRANCH, change.ref)
        if change.revision is not None and is_revision(change.revision) and key in view.refs:
            view.push(key, change.revision, now)
            ref = Ref(change.ref, RefKind.BRANCH, change.revision)
            if view.config.policy.wants(ref, view.memory.default_branch):
                try:
                    await self._submit_push(view, ref)
                except PrebinderError as error:
                    log.warning("webhook.problem", repository=view.key, problem=str(error))
        self._moved(view.key)

    async def _submit_push(self, view: RepositoryView, ref: Ref) -> None:
        configuration = self._configuration.current
        image = image_name(configuration.registry.image_prefix, view.repository, ref.revision)
        settings = recipe(configuration, view.config)
        last = self._builds.latest(image)
        if last is not None and not may_build_again(last, settings, 1, configuration.limits.backoff_max, self._clock()):
            return
        if await self._ready(image, view, ref.revision):
            return
        wanted = Wanted(view.repository, ref.name, ref.revision, image, Wish.TIP, view.config.priority, settings)
        await self._builds.submit(wanted)
