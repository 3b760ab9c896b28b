"""Prebinder's controller: builds an image for each commit and tag before anyone clicks."""

__version__ = "0.1.0"
