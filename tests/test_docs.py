"""Everything that people can name is documented: configuration keys, commands, metrics, routes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from prebinder.cli.commands import app
from prebinder.config import load
from prebinder.model.failure import FailureKind

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


def test_every_metric_is_documented() -> None:
    from prebinder.reconcile.metrics import Metrics as ControllerMetrics
    from prebinder_site.metrics import Metrics as EndpointMetrics

    text = (DOCS / "metrics.md").read_text()
    names = [
        metric.name + ("_total" if metric.type == "counter" else "")
        for metrics in (ControllerMetrics(), EndpointMetrics())
        for metric in metrics.registry.collect()
    ]
    assert len(names) >= 15
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_route_is_documented() -> None:
    sources = {
        "controller-api.md": ROOT / "controller/prebinder/api/app.py",
        "binder-api.md": ROOT / "launcher-site/prebinder_site/app.py",
    }
    for page, source in sources.items():
        text = (DOCS / page).read_text()
        paths = re.findall(r'\b(?:Route|Prefix)\("([^"]+)"', source.read_text())
        assert len(paths) >= 8, source
        for path in paths:
            beginning = path.partition("{")[0]
            assert f" {beginning}" in text or f"`{beginning}" in text, f"{path} is not in docs/{page}"


def test_every_kind_of_failure_has_a_heading_and_advice() -> None:
    for kind in FailureKind:
        assert kind.heading
        assert not kind.heading.endswith(".")
        assert kind.advice.endswith(".")
