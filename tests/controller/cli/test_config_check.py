"""`prebinder config`: what is wrong with a file is said with file, line, key and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prebinder.cli.commands import app
from tests.support.command import prebinder

WRONG = {
    "unknown key": (
        "repositories:\n  - git: http://git.test/a/b.git\n    brnches: [main]\n",
        ":3: repositories[0].brnches: unknown key. Did you mean branches?",
    ),
    "unknown section": ("site: {port: 1}\nlimit: {time: 5m}\n", ":2: limit: unknown key. Did you mean limits?"),
    "nothing like it": ("site:\n  zzz: 1\n", ":2: site.zzz: unknown key. Known here: title, address, port"),
    "text for a number": ("limits:\n  parallel: many\n", ":2: limits.parallel: write a whole number, not 'many'."),
    "number for text": ("repositories:\n  - github: 5\n", ":2: repositories[0].github: write text, not 5."),
    "a word for yes or no": ("registry:\n  insecure: perhaps\n", ":2: registry.insecure: write true or false, not"),
    "value for a section": ("\nsite: 8080\n", ":2: site: write keys and values below it, not 8080. Known here: title"),
    "duration": ("limits:\n  time: soon\n", ":2: limits.time: write a duration such as 300ms, 30s, 10m, 2h or 7d."),
    "size": ("limits: {memory: lots}\n", ":1: limits.memory: write a size such as 500M, 4G or 10Gi."),
    "choice": ("on_demand: everyone\n", ":1: on_demand: 'everyone' is not one of 'registered', 'anyone' or 'none'."),
    "too large": ("site: {port: 99999}\n", ":1: site.port: input should be less than or equal to 65535, not 99999."),
    "two hosts": (
        "repositories:\n  - git: http://git.test/a/b.git\n    github: a/b\n",
        ":2: repositories[0]: name the repository with either github: owner/repository or git: URL.",
    ),
    "no url": ("repositories:\n  - git: file:///etc\n", ':2: repositories[0]: "file:///etc" cannot be fetched'),
    "duplicate": (
        "repositories:\n  - git: http://git.test/a/b.git\n  - github: a/b\n  - git: http://git.test/a/b.git\n",
        ":4: repositories[2]: http://git.test/a/b.git is registered already in line 2; merge the two entries.",
    ),
    "duplicate by another spelling": (
        "repositories:\n  - github: Ada/Course\n  - github: ada/course.git\n",
        ":3: repositories[1]: ada/course is registered already in line 2; merge the two entries.",
    ),
    "secret in the file": (
        "hosts:\n  github:\n    token: abc123\n",
        ":3: hosts.github.token: a secret is never written into the file; write {env: NAME} or {file: PATH}.",
    ),
    "secret that is not set": (
        "hosts:\n  git:\n    webhook_secret: {env: NOT_THERE}\n",
        ":3: hosts.git.webhook_secret: the environment variable NOT_THERE is not set.",
    ),
    "secret file that is missing": (
        "controller:\n  token: {file: /nonexistent/token}\n",
        ":2: controller.token: the file /nonexistent/token cannot be read: No such file or directory.",
    ),
    "hub without token": ("hub:\n  url: http://hub.test\n", ":1: hub: hub.url needs hub.token"),
    "no yaml": ("repositories: [\n", ": not valid YAML: "),
    "key twice": ("site: {port: 1}\nsite: {port: 2}\n", ":2: not valid YAML: found duplicate key"),
    "a list": ("- git: http://git.test/a/b.git\n", ":1: the file must be a mapping such as `repositories: […]`."),
    "no text": (b"\xff\xfe\x00", ": is not UTF-8 text."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_line_key_and_remedy(name: str, tmp_path: Path) -> None:
    text, expected = WRONG[name]
    file = tmp_path / "prebinder.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{file}:")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "abc123" not in done.output
    assert done.stdout == ""


async def test_each_mistake_is_one_line_and_up_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("sites: {}\nlimits: {time: soon}\nsite: {prt: 1}\n")
    checked = await prebinder("config", "check", str(file), folder=tmp_path)
    assert [line.split(":")[1] for line in checked.errors.splitlines()] == ["1", "2", "3"]
    up = await prebinder("up", "--config", str(file), folder=tmp_path)
    assert up.code == 2
    assert checked.errors.strip() in up.errors
    assert "Traceback" not in up.errors


async def test_a_right_file_is_said_to_be_right(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    text = "repositories: [{github: a/b}]\nhosts: {github: {token: {env: TOKEN}, webhook_secret: {file: token}}}\n"
    (tmp_path / "prebinder.yaml").write_text(text)
    done = await prebinder("config", "check", folder=tmp_path, env={"TOKEN": "s3cret"})
    assert (done.code, done.errors) == (0, "")
    assert done.output == f"{tmp_path}/prebinder.yaml: valid, 1 repository.\n"
    (tmp_path / "empty.yaml").write_text("")
    assert (await prebinder("config", "check", "empty.yaml", folder=tmp_path)).code == 0


async def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    for words in (["nope.yaml"], ["."], []):
        done = await prebinder("config", "check", *words, folder=tmp_path)
        assert done.code == 2
        assert len(done.errors.splitlines()) == 1
        assert "Traceback" not in done.errors


async def test_the_schema_is_json(tmp_path: Path) -> None:
    done = await prebinder("config", "schema", folder=tmp_path)
    assert done.code == 0
    assert "repositories" in json.loads(done.output)["properties"]
