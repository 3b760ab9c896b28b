"""Prebinder's launch endpoint and static site."""
