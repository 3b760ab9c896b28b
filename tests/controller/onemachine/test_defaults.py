"""The configuration that `prebinder up` writes when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebinder.config import load
from prebinder.config.state import StateFolder
from prebinder.model.failure import ConfigurationError
from prebinder.onemachine.defaults import DEFAULT_PORT, default_configuration


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    state.create()
    return state


def test_it_is_valid_and_registers_the_demo(state: StateFolder) -> None:
    configuration = load(default_configuration(state, None))
    assert configuration.site.port == DEFAULT_PORT
    assert [r.git for r in configuration.repositories] == [f"http://127.0.0.1:{DEFAULT_PORT}/git/examples.git"]
    secret = configuration.hosts.git.webhook_secret
    assert secret is not None
    assert secret.read().get_secret_value() == state.secret("webhook")


def test_its_schema_lies_beside_it(state: StateFolder) -> None:
    path = default_configuration(state, None)
    schema = path.read_text().splitlines()[0].partition("$schema=")[2]
    assert (path.parent / schema).is_file()


def test_another_port_writes_an_untouched_file_anew(state: StateFolder) -> None:
    default_configuration(state, 9001)
    assert load(default_configuration(state, 9002)).site.port == 9002
    assert load(default_configuration(state, None)).site.port == 9002


def test_an_edited_file_is_never_overwritten(state: StateFolder) -> None:
    path = default_configuration(state, 9001)
    edited = path.read_text() + "limits: {parallel: 1}\n"
    path.write_text(edited)
    assert default_configuration(state, None) == path
    with pytest.raises(ConfigurationError, match=r"was edited: change its port 9001 there"):
        default_configuration(state, 9002)
    assert path.read_text() == edited


def test_the_port_that_an_edited_file_has_is_taken(state: StateFolder) -> None:
    path = default_configuration(state, 9001)
    path.write_text(path.read_text() + "limits: {parallel: 1}\n")
    assert default_configuration(state, 9001) == path
