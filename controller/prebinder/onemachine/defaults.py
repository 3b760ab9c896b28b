"""The configuration that `prebinder up` uses when there is none: one demo repository, everything else as it comes.

It is written once, into the state folder, so that people can read and edit it; it is never overwritten once changed.
"""

from __future__ import annotations

from pathlib import Path

from prebinder.config.state import StateFolder
from prebinder.model.failure import ConfigurationError

DEFAULT_PORT = 8585
_FILE = "prebinder.yaml"
_TEMPLATE = """\
# yaml-language-server: $schema=./prebinder.schema.json
# Prebinder's configuration. Edit it while Prebinder runs: changes are picked up at once, and `prebinder config check`
# says what is wrong. Every key is described in the schema beside this file.
repositories:
  - git: http://127.0.0.1:{port}/git/examples.git
    title: Examples
    description: A real Git repository on this machine. Clone it, change it, push it, and watch its image being built.
    branches: [HEAD, "teach/*"]
    build_pack: pip
    urlpath: lab/tree/index.ipynb

  # Your own, for example:
  # - github: binder-examples/requirements
  #   tags: ">=1.0"

hosts:
  git:
    webhook_secret: {{file: {secret}}}

site:
  port: {port}
"""


def default_configuration(state: StateFolder, port: int | None) -> Path:
    """The path of the default configuration, written when it isn't there.

    With another `port` than before, a file that nobody edited is written anew; an edited one is left alone.
    Raises ConfigurationError when it was edited and says another port, or is invalid.
    """
    from prebinder.config import json_schema, load

    state.secret("webhook")
    path = state.root / _FILE
    (state.root / "prebinder.schema.json").write_text(json_schema())
    wanted = _text(state, port if port is not None else DEFAULT_PORT)
    if path.exists():
        have = path.read_text()
        if have == wanted or (port is None):
            return path
        if have not in (_text(state, p) for p in _ports_in(have)):
            had = load(path).site.port
            if had == port:
                return path
            raise ConfigurationError(f"{path} was edited: change its port {had} there, not by --port.")
    half = path.with_suffix(".new")
    half.write_text(wanted)
    half.replace(path)
    return path


def _text(state: StateFolder, port: int) -> str:
    return _TEMPLATE.format(port=port, secret=state.root / "secrets" / "webhook")


def _ports_in(text: str) -> list[int]:
    lines = (line.strip() for line in text.splitlines())
    return [
        int(line.removeprefix("port:")) for line in lines if line.startswith("port:") and line[5:].strip().isdigit()
    ]
