"""Git hosts: one module each, behind one Protocol. See `base.py`."""
