"""Specs: only a well-formed one comes out, whatever goes in, and one repository has one value."""

from __future__ import annotations

import re
import subprocess
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prebinder.model.failure import SpecError
from prebinder.model.spec import (
    GIT_SCHEMES,
    MAX_REF_LENGTH,
    MAX_SPEC_LENGTH,
    Provider,
    Repository,
    Spec,
    check_ref,
    gist,
    git_url,
    github,
    gitlab,
    is_revision,
    parse_spec,
)

providers = st.one_of(st.sampled_from([p.value for p in Provider]), st.text(max_size=5))
nasty = st.text(alphabet=st.one_of(st.sampled_from("/%.-~^:?*[\\@{}#\x00\n\r\t 2Ff"), st.characters()), max_size=60)
words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
    lambda w: ".." not in w and not w.endswith((".git", ".lock", "."))
)
refs = st.lists(words, min_size=1, max_size=3).map("/".join)
repositories = st.one_of(
    st.tuples(words, words).map(lambda p: github("/".join(p))),
    st.lists(words, min_size=2, max_size=4).map(lambda p: gitlab("/".join(p))),
    st.tuples(st.sampled_from(sorted(GIT_SCHEMES)), words, words).map(
        lambda p: git_url(f"{p[0]}://{p[1].replace('_', '-').lower()}.example/{p[2]}/x")
    ),
    st.tuples(words, st.from_regex(r"[0-9a-f]{20}", fullmatch=True)).map(lambda p: gist("/".join(p))),
)


@given(providers, nasty)
@example("gh", "a/b/../../c")
@example("git", quote("ext::sh -c id", safe="") + "/main")
@example("git", quote("file:///etc", safe="") + "/main")
@example("git", quote("--upload-pack=id", safe="") + "/main")
def test_whatever_comes_in_is_a_good_spec_or_a_spec_error(provider: str, text: str) -> None:
    try:
        spec = parse_spec(provider, text)
    except SpecError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 400
        return
    assert not spec.ref.startswith("-")
    assert not spec.repository.name.startswith("-")
    assert ".." not in spec.ref
    assert not re.search(r"[\x00-\x20\x7f\\]", spec.ref + spec.repository.name)
    assert ".." not in spec.repository.name.split("/")
    if spec.repository.provider is Provider.GIT:
        assert spec.repository.name.partition("://")[0] in GIT_SCHEMES


@given(repositories, refs)
def test_what_is_written_as_a_link_is_read_back_the_same(repository: Repository, ref: str) -> None:
    spec = Spec(repository, ref)
    provider, _, rest = str(spec).partition("/")
    assert parse_spec(provider, rest) == spec


@given(st.one_of(refs, nasty))
def test_every_ref_that_passes_is_one_for_git_too(ref: str) -> None:
    try:
        check_ref(ref)
    except SpecError:
        return
    done = subprocess.run(["git", "check-ref-format", f"refs/heads/{ref}"], check=False, timeout=30)
    assert done.returncode == 0, ref


@pytest.mark.parametrize(
    ("provider", "text", "repository", "ref"),
    [
        ("gh", "binder-examples/requirements/HEAD", "gh/binder-examples/requirements", "HEAD"),
        ("gh", "a/b/feature/with/slashes", "gh/a/b", "feature/with/slashes"),
        ("gh", "a/b.git/main", "gh/a/b", "main"),
        ("gh", "a/b/caf%C3%A9", "gh/a/b", "café"),
        ("gl", "group%2Fsub%2Fproject/main", "gl/group%2Fsub%2Fproject", "main"),
        ("gl", "group/project/feature/x", "gl/group%2Fproject", "feature/x"),
        ("git", "https%3A%2F%2Fexample.org%2Fa%2Fb/main", "git/https%3A%2F%2Fexample.org%2Fa%2Fb", "main"),
        ("git", "https%3A//example.org/a/b/main", "git/https%3A%2F%2Fexample.org%2Fa%2Fb", "main"),
        ("git", "https%3A%2F%2FEXAMPLE.org%2FA%2F/v1", "git/https%3A%2F%2Fexample.org%2FA", "v1"),
        ("git", "git%40example.org%3Aa%2Fb.git/main", "git/ssh%3A%2F%2Fgit%40example.org%2Fa%2Fb.git", "main"),
        ("gist", "user/0123456789abcdef", "gist/user/0123456789abcdef", "HEAD"),
    ],
)
def test_the_spellings_of_clients_in_the_wild(provider: str, text: str, repository: str, ref: str) -> None:
    spec = parse_spec(provider, text)
    assert (str(spec.repository), spec.ref) == (repository, ref)


@pytest.mark.parametrize(
    ("provider", "text", "said"),
    [
        ("bb", "a/b/c", "no provider"),
        ("gh", "a/b", 'Did you mean "gh/a/b/HEAD"?'),
        ("gh", "a/b/", 'Did you mean "gh/a/b/HEAD"?'),
        ("gh", "a", "gh/owner/repository/ref"),
        ("gh", "../b/main", "not a GitHub repository"),
        ("gh", "-a/b/main", "not a GitHub repository"),
        ("gh", "a/b/-main", "not a valid name"),
        ("gh", "a/b/a..b", "not a valid name"),
        ("gh", "a/b/x%00y", "not a valid name"),
        ("gh", "a/b/x%0Ay", "not a valid name"),
        ("gh", "a/b/%252e%252e", "percent-escaped twice"),
        ("gh", "a/b/%FF", "not UTF-8"),
        ("gh", "a/b/" + "x" * 3000, "longer than"),
        ("gh", "a/b/" + "x" * 300, "longer than"),
        ("git", quote("ext::sh -c touch% /tmp/x", safe="") + "/main", "Git"),
        ("git", quote("file:///etc/passwd", safe="") + "/main", "cannot be fetched"),
        ("git", quote("https://user:word@example.org/a", safe="") + "/main", "password"),
        ("git", quote("https://example.org/a?x=y", safe="") + "/main", "query"),
        ("git", quote("ssh://-oProxyCommand=id/a", safe="") + "/main", "names no host"),
        ("git", quote("https://example.org/../a", safe="") + "/main", "names no repository"),
        ("gl", "group%2Fproject", "names no ref"),
        ("gist", "user", "gist/user/id"),
        ("gist", "user/not-hex", "not a gist"),
    ],
)
def test_what_names_nothing_is_refused_in_words(provider: str, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        parse_spec(provider, text)


def test_a_password_is_not_repeated_in_the_refusal() -> None:
    with pytest.raises(SpecError) as caught:
        git_url("https://user:hidden-word@example.org/a")
    assert "hidden-word" not in str(caught.value)


def test_limits_are_inclusive() -> None:
    assert check_ref("x" * MAX_REF_LENGTH)
    with pytest.raises(SpecError):
        check_ref("x" * (MAX_REF_LENGTH + 1))
    with pytest.raises(SpecError):
        parse_spec("git", "x" * (MAX_SPEC_LENGTH + 1))


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("a" * 40, True),
        ("0" * 64, True),
        ("a" * 39, False),
        ("a" * 41, False),
        ("A" * 40, False),
        ("a" * 40 + "\n", False),
    ],
)
def test_a_revision_is_the_whole_string(text: str, full: bool) -> None:
    assert is_revision(text) is full
