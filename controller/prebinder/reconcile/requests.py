"""What a person's request for a build may do: pure rules of the configuration's `on_demand`."""

from __future__ import annotations

from prebinder.config import Configuration, RepositoryConfig
from prebinder.ledger import BuildEntry
from prebinder.model.events import BuildState
from prebinder.model.failure import Disposition, RefusedError
from prebinder.model.spec import Repository


def check_repository(configuration: Configuration, repository: Repository) -> RepositoryConfig | None:
    """The registration, if any. Raises RefusedError before anyone is asked about a repository that is not allowed."""
    registered = configuration.find(repository)
    if registered is None and configuration.on_demand != "anyone":
        raise RefusedError(
            f"{repository.name} is not registered here, and only registered repositories are built. "
            "Ask the operator to register it."
        )
    return registered


def check_build(configuration: Configuration, repository: Repository, ref: str) -> None:
    """Raises RefusedError when nothing may be built because somebody clicks."""
    if configuration.on_demand == "none":
        raise RefusedError(
            f"{repository.name} at {ref} is not built yet, and nothing is built on demand here. "
            "Open a branch or tag that is ready."
        )


def answers(last: BuildEntry, *, rebuild: bool, settings: str) -> bool:
    """Whether the newest build of a revision, which ended without an image, is the answer: no other is made."""
    record = last.record
    if record.state is not BuildState.FAILED or rebuild or last.recipe != settings:
        return False
    return record.failure is not None and record.failure.disposition is Disposition.STALLED
