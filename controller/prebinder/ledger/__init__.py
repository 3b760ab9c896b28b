"""The controller's database: refs and revisions seen, builds, launches. Nothing in it is needed for a link to work."""

from prebinder.ledger.ledger import Ledger, LedgerError
from prebinder.ledger.records import BuildEntry, RepositoryMemory, RevisionMemory, Wish

__all__ = ["BuildEntry", "Ledger", "LedgerError", "RepositoryMemory", "RevisionMemory", "Wish"]
