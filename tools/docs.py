"""Writes the parts of docs/ that come from the code: the JSON Schema and the reference of the configuration file.

python tools/docs.py            write them
python tools/docs.py --check    fail when they are not what the code says
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from prebinder.config import Configuration, json_schema
from prebinder.config.models import SecretRef

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEAD = """\
# The configuration file

One YAML file, `prebinder.yaml`, read by `prebinder up`, `controller` and `serve`. Made from the code by
`tools/docs.py`; the same as a JSON Schema: [prebinder.schema.json](prebinder.schema.json). Editors that speak
yaml-language-server complete and check the file when its first line is

```yaml
# yaml-language-server: $schema=./prebinder.schema.json
```

- Every key is optional. An unknown key, a wrong type or a duplicate repository is an error that names the line.
- Durations are seconds or text such as `300ms`, `30s`, `10m`, `7d`; sizes are bytes or text such as `500M`, `4Gi`.
- Secrets are never written into the file, only where they are: `{env: NAME}` or `{file: PATH}`.
- The file is read again when it changes. An invalid new file is not used: the last good one stays in force, and the
  log, `prebinder status` and the status page say so. What is read once needs a restart: `builder.kind`, `controller`,
  `hosts`, `hub`, `ledger`, `polling.click_budget`, `polling.stale_after`, `registry` and `site`, but for secrets. On
  Kubernetes the chart restarts what has to be; elsewhere the log says `configuration.restart_needed`.

"""


def main() -> int:
    pages = {DOCS / "prebinder.schema.json": json_schema(), DOCS / "configuration.md": HEAD + "\n".join(tables())}
    if "--check" in sys.argv:
        stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
        if stale:
            print(f"docs: not up to date: {', '.join(stale)}; run python tools/docs.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text)
    return 0


def tables() -> list[str]:
    lines: list[str] = []
    section(lines, "The file", "", Configuration)
    return lines


def section(lines: list[str], title: str, prefix: str, model: type[BaseModel]) -> None:
    lines += [
        f"## {title}",
        "",
        (model.__doc__ or "").strip(),
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[tuple[str, str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        nested = model_in(field.annotation)
        key = f"{prefix}{name}"
        meaning = " ".join((field.description or "").split())
        if nested and nested is not SecretRef:
            listed = get_origin(field.annotation) is tuple
            inner.append((f"`{key}`", f"{key}[]." if listed else f"{key}.", nested))
            lines.append(f"| `{key}` | {'list' if listed else 'section'} | | {meaning} |")
        else:
            lines.append(f"| `{key}` | {shape(field)} | {default(field)} | {meaning} |")
    lines.append("")
    for heading, inner_prefix, nested in inner:
        section(lines, heading, inner_prefix, nested)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The section's model that an annotation names, also inside `X | None` and `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_in(inner))), None)


def shape(field: FieldInfo) -> str:
    annotation = field.annotation
    metadata = {type(m).__name__ for m in field.metadata}
    if model_in(annotation) is SecretRef:
        return "secret"
    if annotation is float and "BeforeValidator" in metadata:
        return "duration"
    if annotation is int and "BeforeValidator" in metadata:
        return "size"
    return words(annotation)


def words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{getattr(a, 'value', a)}`" for a in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {words(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping of text to text"
    if get_args(annotation):
        return words(next(a for a in get_args(annotation) if a is not NoneType))
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}
    if annotation in names:
        return names[annotation]
    if hasattr(annotation, "__members__"):
        return " or ".join(f"`{m.value}`" for m in annotation)
    return str(getattr(annotation, "__name__", annotation))


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value in (None, "", {}) or value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(str(v) for v in value)}]`"
    return (
        f"`{getattr(value, 'value', value)}`".lower()
        if isinstance(value, bool)
        else f"`{getattr(value, 'value', value)}`"
    )


if __name__ == "__main__":
    sys.exit(main())
