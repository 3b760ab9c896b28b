"""Where images are: an OCI registry, or the engine's own store. See `base.py`."""
