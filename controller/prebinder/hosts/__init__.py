"""Git hosts: one module each, behind one Protocol. See `base.py`."""

from prebinder.hosts.table import create_hosts

__all__ = ["create_hosts"]
