"""Configuration files: what is good, and for what is bad the file, line, key and remedy."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from prebinder.config import Configuration, json_schema, load, parse
from prebinder.config.load import MAX_FILE_SIZE
from prebinder.model.events import Priority
from prebinder.model.failure import ConfigurationError
from prebinder.model.policy import BuildRule, Policy
from prebinder.model.spec import git_url, github

GOOD = """\
repositories:
  - github: binder-examples/requirements
  - git: https://git.example.org/course.git
    title: Course
    branches: [main, "teach/*"]
    tags: ">=2.0"
    build: newest
    priority: high
    build_pack: pip
on_demand: anyone
polling: {interval: 2m, jitter: 500ms}
limits: {memory: 2Gi, disk: 5G, time: 1h, log: 1000}
registry: {prefix: registry.example.org/binder/}
"""


def test_a_good_file() -> None:
    got = parse(GOOD)
    first, second = got.repositories
    assert first.repository == github("binder-examples/requirements")
    assert first.policy == Policy()
    assert second.repository == git_url("https://git.example.org/course.git")
    assert second.policy == Policy(("main", "teach/*"), (">=2.0",), BuildRule.NEWEST)
    assert (second.priority, second.build_pack, second.title) == (Priority.HIGH, "pip", "Course")
    assert (got.polling.interval, got.polling.jitter) == (120.0, 0.5)
    limits = got.limits
    assert (limits.memory, limits.disk, limits.time, limits.log) == (2 * 2**30, 5 * 10**9, 3600.0, 1000)
    assert got.registry.image_prefix == "registry.example.org/binder/"
    assert got.find(github("Binder-Examples/Requirements")) is first
    assert got.find(git_url("https://git.example.org/Course.git")) is None


def test_nothing_is_needed() -> None:
    assert parse("") == parse("# nothing\n") == Configuration()
    assert Configuration().registry.image_prefix == "localhost/prebinder/"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repositores: []", "x.yaml:1: repositores: unknown key. Did you mean repositories?"),
        ("site:\n  title: A\n  prot: 1", "x.yaml:3: site.prot: unknown key. Did you mean port?"),
        (
            "repositories:\n- github: a/b\n  branchs: x",
            "x.yaml:3: repositories[0].branchs: unknown key. Did you mean branches?",
        ),
        ("limits: {parallel: many}", "limits.parallel: write a whole number, not 'many'."),
        ("limits:\n  parallel: 0", "x.yaml:2: limits.parallel: input should be greater than or equal to 1, not 0."),
        ("polling: {interval: soon}", "write a duration such as 300ms, 30s, 10m, 2h or 7d"),
        ("limits: {memory: lots}", "write a size such as 500M, 4G or 10Gi"),
        ("on_demand: maybe", "on_demand: 'maybe' is not one of 'registered', 'anyone' or 'none'."),
        ("repositories:\n- github: a/b\n  build: never", "repositories[0].build: 'never' is not one of"),
        ("repositories:\n- github: a/b\n  priority: person", "repositories[0].priority: 'person' is not one of"),
        ("repositories:\n- title: x", "name the repository with either github: owner/repository or git: URL"),
        ("repositories:\n- {github: a/b, git: 'https://x/y'}", "name the repository with either"),
        ("repositories:\n- github: a", "write owner/repository"),
        ("repositories:\n- git: file:///etc", "cannot be fetched"),
        ("repositories:\n- github: a/b\n  tags: '>=two'", "is not a version specifier; write for example >=2.0,<3"),
        (
            "repositories:\n- github: a/b\n- github: A/B",
            "x.yaml:3: repositories[1]: A/B is registered already in line 2",
        ),
        ("hub: {url: 'http://x'}", "hub.url needs hub.token"),
        ("hub:\n  url: http://x\n  token: plain", "x.yaml:3: hub.token: a secret is never written into the file"),
        (
            "hub: {url: 'http://x', token: {env: PREBINDER_NO_SUCH}}",
            "the environment variable PREBINDER_NO_SUCH is not set",
        ),
        ("hub: {url: 'http://x', token: {file: /no/such}}", "the file /no/such cannot be read"),
        ("hub: {url: 'http://x', token: {}}", "write either {env: NAME} or {file: PATH}"),
        ("registry: {prefix: 'Upper/'}", "registry.prefix: string should match pattern"),
        ("repositories: x", "x.yaml:1: repositories: write a list, not 'x'."),
        ("- a", "x.yaml:1: the file must be a mapping"),
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("site: {title: 2025-13-01}", "not valid YAML: month must be in 1..12."),
        ("a: !!int x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [id]", "unknown key"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "x.yaml")
    message = str(caught.value)
    assert said in message
    assert message.startswith("x.yaml:")
    assert "Traceback" not in message
    assert "pydantic" not in message


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("site: {prot: 1}\nlimits:\n  parallel: 0\n  queue: 0\n", "x.yaml")
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == ["x.yaml:1", "x.yaml:3", "x.yaml:4"]
    with pytest.raises(ConfigurationError, match="and 30 more"):
        parse("".join(f"key{n}: 1\n" for n in range(50)), "x.yaml")


def test_secrets_are_read_from_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text("  kept in a file\n")
    monkeypatch.setenv("HUB_TOKEN", "kept in the environment")
    for reference, value in (("{env: HUB_TOKEN}", "kept in the environment"), (f"{{file: {path}}}", "kept in a file")):
        token = parse(f"hub: {{url: 'http://x', token: {reference}}}").hub.token
        assert token is not None
        assert token.read().get_secret_value() == value
        assert "kept" not in repr(token)
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        parse(f"hub: {{url: 'http://x', token: {{file: {path}}}}}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "prebinder.yaml"
    with pytest.raises(ConfigurationError, match=r"prebinder\.yaml: cannot be read: No such file"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        load(path)
    path.write_text("#" * (MAX_FILE_SIZE + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        load(path)
    path.write_text(GOOD)
    assert load(path) == parse(GOOD)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_configuration_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse(text), Configuration)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from([*Configuration.model_fields, "other"])


@given(st.dictionaries(keys, json_values, max_size=4))
def test_any_tree_is_a_configuration_or_a_configuration_error(tree: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse(json.dumps(tree)), Configuration)


def test_the_schema_takes_what_is_good_and_says_what_each_key_means() -> None:
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    tree = json.loads(json.dumps(YAML(typ="safe").load(GOOD)))
    assert list(validator.iter_errors(tree)) == []
    assert list(validator.iter_errors({"repositores": []}))
    for name, model in {"": schema, **schema["$defs"]}.items():
        for key, field in model.get("properties", {}).items():
            # A section that says the same of itself as its key does says it once.
            section = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or section.get("description"), f"{name}.{key} has no description"
