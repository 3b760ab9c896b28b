"""Everything that people can name is documented: configuration keys, commands, metrics, routes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from prebinder.cli.commands import app
from prebinder.config import load

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def test_the_configuration_reference_and_schema_are_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "docs.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    command = typer.main.get_command(app)
    names = []
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        inner = getattr(sub, "commands", None)
        names += [f"{name} {n}" for n in inner] if inner else [name]
    assert len(names) >= 10
    missing = [name for name in names if f"`prebinder {name}" not in text]
    assert missing == []


def test_every_exit_code_is_documented() -> None:
    from prebinder.cli import commands

    text = (DOCS / "cli.md").read_text()
    for code in (commands.OK, commands.FAILED, commands.USAGE, commands.AWAY, commands.INTERRUPTED):
        assert f"| {code} |" in text


def test_every_example_is_a_valid_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_TOKEN", "GITHUB_WEBHOOK_SECRET", "HUB_TOKEN", "CONTROLLER_TOKEN"):
        monkeypatch.setenv(name, "a secret")
    files = sorted((ROOT / "examples").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        assert load(file).repositories, file
        assert "yaml-language-server: $schema=../docs/prebinder.schema.json" in file.read_text()
