"""Builders: run one build; and the store of their logs. See `base.py`."""
