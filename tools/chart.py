"""Writes what of the Helm charts comes from the code: values.schema.json and README.md of charts/prebinder, and the
module that the values of charts/prebinder-hub carry to the Hub.

    python tools/chart.py            write them
    python tools/chart.py --check    fail when they are not what the code says

chart_values.py has the types and the meaning of every value; charts/prebinder/values.yaml holds the defaults and must
have exactly these keys. `config` is Prebinder's own configuration file, so that a wrong key in it fails at
`helm install` and not in a pod.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

from chart_values import Section, Values
from pydantic import BaseModel
from ruamel.yaml import YAML

from prebinder.config import Configuration

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "prebinder"
UMBRELLA = ROOT / "charts" / "prebinder-hub"
MODULES = ("__init__.py", "jupyterhub.py", "kubernetes_hub.py")


def schema() -> str:
    """values.schema.json: the values' models, with the configuration's schema in place of `config`."""
    tree = Values.model_json_schema(mode="validation")
    config = Configuration.model_json_schema(mode="validation", ref_template="#/$defs/config.{model}")
    definitions = {f"config.{name}": value for name, value in config.pop("$defs").items()}
    tree["$defs"] = {**tree["$defs"], **definitions}
    tree["properties"]["config"] = config
    _optional(tree)
    tree = {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree, "title": "Values of the Prebinder chart"}
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def _optional(node: Any) -> None:
    """No value is required: values.yaml has them all, and Helm checks what is merged. Only `null` takes one away."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            node.pop("required", None)
        for value in node.values():
            _optional(value)
    elif isinstance(node, list):
        for value in node:
            _optional(value)


def readme() -> str:
    """README.md of the chart."""
    defaults = YAML(typ="safe").load((CHART / "values.yaml").read_text())
    lines = [
        README_HEAD,
        "## Values",
        "",
        "Made from the code by `tools/chart.py`; values.schema.json checks the same at `helm install`.",
        "",
        "| value | default | meaning |",
        "|---|---|---|",
        *_rows(Values, "", defaults),
        "",
    ]
    return "\n".join(lines)


def _rows(model: type[BaseModel], prefix: str, defaults: Any) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = next((m for m in (field.annotation, *get_args(field.annotation)) if _is_section(m)), None)
        if inner and isinstance(defaults[key], dict):
            rows += _rows(inner, f"{prefix}{key}.", defaults[key])
            continue
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{prefix}{key}` | `{json.dumps(defaults[key])}` | {meaning} |")
        if inner:
            rows += [
                f"| `{prefix}{key}[].{n}` | | {' '.join((f.description or '').split())} |"
                for n, f in inner.model_fields.items()
            ]
    return rows


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key that values.yaml must have, dotted."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        found |= keys(field.annotation, f"{key}.") if _is_section(field.annotation) else {key}  # type: ignore[arg-type]
    return found


README_HEAD = """\
# The Helm chart `prebinder`

Controller and launch endpoint on Kubernetes; builds run as Jobs, people's servers through JupyterHub. With the chart
`prebinder-hub` a JupyterHub comes along; this one takes a Hub that is there already. How to install:
docs/install/kubernetes.md.

```yaml
# values.yaml, the least that is needed
hub:
  url: http://proxy-public
  publicUrl: https://hub.example.org
  tokenSecret: {name: hub, key: hub.services.prebinder.apiToken}
config:
  site: {url: https://binder.example.org}
  registry: {prefix: registry.example.org/binder/}
  repositories:
    - github: binder-examples/requirements
```

`helm install prebinder charts/prebinder --values values.yaml`, then `helm test prebinder`, which makes a real click.
"""

UMBRELLA_BEGIN = "      # begin: written by tools/chart.py\n"
UMBRELLA_END = "      # end: written by tools/chart.py\n"


def umbrella() -> str:
    """values.yaml of the umbrella chart: between its marks stands the module that the Hub imports."""
    text = (UMBRELLA / "values.yaml").read_text()
    before, _, rest = text.partition(UMBRELLA_BEGIN)
    _, _, after = rest.partition(UMBRELLA_END)
    lines = []
    for name in MODULES:
        source = (ROOT / "launcher-site" / "prebinder_site" / name).read_text()
        lines += [
            f"      prebinder-{name.removesuffix('.py').strip('_')}:",
            f"        mountPath: /usr/local/share/prebinder/prebinder_site/{name}",
            "        stringData: |",
            *(f"          {line}".rstrip() for line in source.splitlines()),
        ]
    return before + UMBRELLA_BEGIN + "\n".join(lines) + "\n" + UMBRELLA_END + after


def main() -> int:
    files = {CHART / "values.schema.json": schema, CHART / "README.md": readme, UMBRELLA / "values.yaml": umbrella}
    if "--check" in sys.argv:
        stale = [str(p.relative_to(ROOT)) for p, make in files.items() if not p.exists() or p.read_text() != make()]
        if stale:
            print(f"charts: not up to date: {', '.join(stale)}; run python tools/chart.py", file=sys.stderr)
        return 1 if stale else 0
    for path, make in files.items():
        path.write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())
