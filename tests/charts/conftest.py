"""Fixtures of the cluster for the charts' tests."""

from tests.support.images import build_images, images, postgresql_image, registry_image
from tests.support.kube import cluster, namespace

__all__ = ["build_images", "cluster", "images", "namespace", "postgresql_image", "registry_image"]
