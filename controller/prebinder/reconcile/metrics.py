"""What the controller counts, for Prometheus. Each has a registry of its own.

The metrics that BinderHub's dashboards know by name are the launch endpoint's.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUILD_SECONDS = (1, 2, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 1800, 3600)


class Metrics:
    """The controller's metrics; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queued = Gauge("prebinder_queued_builds", "Builds that wait.", registry=self.registry)
        self.running = Gauge("prebinder_running_builds", "Builds that run.", registry=self.registry)
        self.builds = Counter("prebinder_builds", "Builds that ended.", ("status", "kind"), registry=self.registry)
        self.attempts = Counter(
            "prebinder_build_attempts", "Attempts that ended without an image.", ("kind",), registry=self.registry
        )
        self.build_seconds = Histogram(
            "prebinder_build_seconds",
            "Seconds that an attempt took, from its start.",
            ("status",),
            buckets=_BUILD_SECONDS,
            registry=self.registry,
        )
        self.rounds = Counter(
            "prebinder_rounds", "Rounds over one repository.", ("cause", "result"), registry=self.registry
        )
        self.questions = Counter(
            "prebinder_host_questions",
            "Questions to Git hosts.",
            ("provider", "question", "result"),
            registry=self.registry,
        )
        self.webhooks = Counter(
            "prebinder_webhooks", "Webhooks that came.", ("provider", "result"), registry=self.registry
        )
        self.launches = Counter(
            "prebinder_recorded_launches", "Launches that endpoints told of.", ("status",), registry=self.registry
        )

    def watch(self, queued: Callable[[], float], running: Callable[[], float]) -> None:
        """Read the two gauges when asked, not when something changes."""
        self.queued.set_function(queued)
        self.running.set_function(running)
