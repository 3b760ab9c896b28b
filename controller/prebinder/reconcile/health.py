"""Which of the things that the controller needs answer now.

A Git host that is away is shown and does not make us unhealthy: what is built keeps opening without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from prebinder.model.failure import PrebinderError
from prebinder.model.messages import Health, HealthCheck
from prebinder.reconcile.views import RepositoryView

_TIMEOUT = 10.0
_FRESH = 2.0


class HealthChecks:
    """Asks each service at most every two seconds, however many ask us."""

    def __init__(
        self, services: Mapping[str, Callable[[], Awaitable[None]]], views: Callable[[], Iterable[RepositoryView]]
    ) -> None:
        self._services = services
        self._views = views
        self._checks: tuple[HealthCheck, ...] = ()
        self._at = float("-inf")
        self._asking = asyncio.Lock()

    async def now(self) -> Health:
        async with self._asking:
            if time.monotonic() - self._at > _FRESH:
                checks = await asyncio.gather(*(_check(name, ask) for name, ask in self._services.items()))
                self._checks, self._at = tuple(checks), time.monotonic()
        hosts = host_checks(self._views())
        return Health(ok=all(check.ok for check in self._checks), checks=(*self._checks, *hosts))


def host_checks(views: Iterable[RepositoryView]) -> tuple[HealthCheck, ...]:
    """From the last looks: a provider is well when a repository of it answered, or none was asked."""
    by_provider: dict[str, list[RepositoryView]] = {}
    for view in views:
        by_provider.setdefault(view.repository.provider.display_name, []).append(view)
    checks = []
    for name, group in by_provider.items():
        problems = [view.host_problem for view in group if view.host_problem]
        bad = len(problems) == len(group)
        checks.append(HealthCheck(service=name, ok=not bad, message=problems[0] if bad else None))
    return tuple(checks)


async def _check(name: str, ask: Callable[[], Awaitable[None]]) -> HealthCheck:
    try:
        async with asyncio.timeout(_TIMEOUT):
            await ask()
    except PrebinderError as error:
        return HealthCheck(service=name, ok=False, message=str(error))
    except TimeoutError:
        return HealthCheck(service=name, ok=False, message=f"No answer within {_TIMEOUT:g} s.")
    return HealthCheck(service=name, ok=True)
