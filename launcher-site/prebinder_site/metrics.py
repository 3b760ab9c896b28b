"""The endpoint's metrics, under BinderHub's names, so that its dashboards keep working.

Cardinality is bounded: only registered repositories are named; all others count as `other`. The registry of metrics
belongs to one application, so that several can live in one process.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUILD_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_LAUNCH_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
OTHER = "other"


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.build_time = Histogram(
            "binderhub_build_time_seconds",
            "Seconds that a click waited for a build",
            ["status"],
            buckets=_BUILD_BUCKETS,
            registry=self.registry,
        )
        self.launch_time = Histogram(
            "binderhub_launch_time_seconds",
            "Seconds from asking the Hub to a running server",
            ["status", "retries"],
            buckets=_LAUNCH_BUCKETS,
            registry=self.registry,
        )
        self.build_count = Counter(
            "binderhub_build_count",
            "Builds that clicks waited for",
            ["status", "provider", "repo"],
            registry=self.registry,
        )
        self.launch_count = Counter(
            "binderhub_launch_count", "Launches", ["status", "provider", "repo"], registry=self.registry
        )
        self.builds = Gauge("binderhub_inprogress_builds", "Clicks that wait for a build now", registry=self.registry)
        self.launches = Gauge(
            "binderhub_inprogress_launches", "Clicks that wait for the Hub now", registry=self.registry
        )

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)
