"""Fixtures of the cluster for the charts' tests."""

from tests.support.images import images
from tests.support.kube import cluster, namespace

__all__ = ["cluster", "images", "namespace"]
