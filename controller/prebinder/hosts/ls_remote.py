"""`git ls-remote`: the refs of a repository from any Git server, in one question.

The answer is untrusted text. Refs whose names no Binder URL can hold are left out; a server that answers something
else is HostUnavailable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prebinder.hosts.git_command import GitFailed, checked_url, run_git, shown
from prebinder.model.catalogue import RefKind
from prebinder.model.failure import HostUnavailable, RefNotFound, SpecError
from prebinder.model.policy import Ref, Refs
from prebinder.model.spec import HEAD, check_ref, is_revision

MAX_REFS = 50_000
_PREFIXES = {RefKind.BRANCH: "refs/heads/", RefKind.TAG: "refs/tags/"}


async def ask_refs(url: str, *, timeout: float, settings: Mapping[str, str] | None = None) -> Refs:
    """All branches and tags. Raises RepositoryNotFound or HostUnavailable."""
    return to_refs(*await _ls_remote(url, (), timeout, settings), url=url)


async def ask_revision(url: str, ref: str, *, timeout: float, settings: Mapping[str, str] | None = None) -> str:
    """The commit of one ref, as `Host.resolve` says. Raises RefNotFound, RepositoryNotFound or HostUnavailable."""
    if is_revision(ref):
        return ref
    names = [HEAD] if ref == HEAD else [HEAD, *_candidates(ref)]
    found, _ = await _ls_remote(url, [*names, *(f"{name}^{{}}" for name in names)], timeout, settings)
    if ref != HEAD:
        for name in _candidates(ref):
            if name in found:
                return found[name]
        if ref not in ("main", "master"):
            raise RefNotFound(f'{shown(url)} has no branch or tag named "{ref}".')
    if HEAD not in found:
        raise RefNotFound(f"{shown(url)} has no commits on its default branch yet.")
    return found[HEAD]


def parse(output: bytes, url: str) -> tuple[dict[str, str], str | None]:
    """Commit ids by full ref name, tags peeled, and the full name of the branch that HEAD stands for.

    Lines are `<id>TAB<name>` and, with --symref, `ref: <name>TAB<name>`. Raises HostUnavailable.
    """
    found: dict[str, str] = {}
    head: str | None = None
    for line in output.decode("utf-8", "surrogateescape").splitlines():
        revision, tab, name = line.partition("\t")
        if revision.startswith("ref: ") and tab:
            head = revision.removeprefix("ref: ") if name == HEAD else head
        elif not tab or not is_revision(revision):
            raise HostUnavailable(f"{shown(url)} did not answer as a Git server.")
        else:
            # The peeled line of an annotated tag comes after the tag's own, and replaces it.
            found[name.removesuffix("^{}")] = revision
    return found, head


def to_refs(found: Mapping[str, str], head: str | None, *, url: str) -> Refs:
    """The branches and tags that a Binder URL can name."""
    refs = tuple(
        Ref(short, kind, revision)
        for name, revision in found.items()
        for kind, prefix in _PREFIXES.items()
        if name.startswith(prefix) and _nameable(short := name.removeprefix(prefix))
    )
    if len(refs) > MAX_REFS:
        raise HostUnavailable(f"{shown(url)} has {len(refs)} branches and tags; Prebinder follows at most {MAX_REFS}.")
    return Refs(refs, _default_branch(refs, head, found.get(HEAD)))


def _default_branch(refs: Sequence[Ref], head: str | None, revision: str | None) -> str | None:
    branches = {r.name: r.revision for r in refs if r.kind is RefKind.BRANCH}
    if head is not None and (name := head.removeprefix("refs/heads/")) in branches:
        return name
    # Old and plain-file servers do not say which branch HEAD is: then one that stands at the same commit.
    at_head = sorted(name for name, at in branches.items() if at == revision)
    return next((name for name in ("main", "master", *at_head) if name in at_head), None)


def _candidates(ref: str) -> list[str]:
    """What a person may mean, in order: a branch, a tag, any other ref (`pull/1/head`), a full name."""
    return [f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/{ref}", *([ref] if ref.startswith("refs/") else [])]


def _nameable(name: str) -> bool:
    try:
        return bool(check_ref(name))
    except (SpecError, UnicodeEncodeError):
        return False


async def _ls_remote(
    url: str, patterns: Sequence[str], timeout: float, settings: Mapping[str, str] | None
) -> tuple[dict[str, str], str | None]:
    url = checked_url(url)
    try:
        output = await run_git(
            ["ls-remote", "--symref", "--", url, *patterns], url=url, timeout=timeout, settings=settings
        )
    except GitFailed as error:
        raise HostUnavailable(str(error)) from None
    return parse(output, url)
