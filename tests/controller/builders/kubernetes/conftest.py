"""The cluster, a namespace for each module, and a builder image that runs the test's scripts."""

from __future__ import annotations

from tests.support.cluster_builds import site
from tests.support.kube import cluster, namespace
from tests.support.scripted_pod import scripted_image

__all__ = ["cluster", "namespace", "scripted_image", "site"]
