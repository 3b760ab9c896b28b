"""From the text of a configuration file to a `Configuration`, or to errors that name file, line, key and remedy.

A file is used whole or not at all. YAML is read by ruamel.yaml (YAML 1.2), which keeps the line of each key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from prebinder.config.models import Configuration
from prebinder.model.failure import ConfigurationError

MAX_FILE_SIZE = 4 * 2**20
_MAX_ERRORS = 20
_WANTED = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def load(path: Path) -> Configuration:
    """Read and check the file at `path`. Raises ConfigurationError with one line for each thing that is wrong."""
    try:
        if path.stat().st_size > MAX_FILE_SIZE:
            raise ConfigurationError(f"{path}: larger than {MAX_FILE_SIZE} bytes; this is not a configuration file.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text.") from None
    return parse(text, str(path))


def parse(text: str, source: str = "configuration") -> Configuration:
    """The same for a text; `source` stands where the file's name would."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigurationError(f"{where}: not valid YAML: {error.problem or error.context}.") from None
    except RecursionError:
        raise ConfigurationError(f"{source}: not valid YAML: nested too deeply.") from None
    except (YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The others come from ruamel.yaml's conversions: `2025-13-01`, `!!int x`, `0x_`.
        raise ConfigurationError(f"{source}: not valid YAML: {error}.") from None
    if tree is None:
        tree = CommentedMap()
    if not isinstance(tree, CommentedMap):
        raise ConfigurationError(f"{source}:1: the file must be a mapping such as `repositories: […]`.")
    try:
        configuration = Configuration.model_validate(tree)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda detail: _line(tree, detail["loc"]))
        lines = [_explain(tree, detail, source) for detail in details[:_MAX_ERRORS]]
        if len(details) > _MAX_ERRORS:
            lines.append(f"{source}: and {len(details) - _MAX_ERRORS} more.")
        raise ConfigurationError("\n".join(lines)) from None
    _refuse_duplicates(configuration, tree, source)
    return configuration


def json_schema() -> str:
    """The JSON Schema (draft 2020-12) of the file, as text."""
    schema = Configuration.model_json_schema(mode="validation")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "prebinder.yaml"}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _refuse_duplicates(configuration: Configuration, tree: CommentedMap, source: str) -> None:
    seen: dict[str, int] = {}
    for index, entry in enumerate(configuration.repositories):
        key = str(entry.repository).casefold()
        line = _line(tree, ("repositories", index))
        if key in seen:
            raise ConfigurationError(
                f"{source}:{line}: repositories[{index}]: {entry.repository.name} is registered already in line "
                f"{seen[key]}; merge the two entries."
            )
        seen[key] = line


def _explain(tree: Any, detail: ErrorDetails, source: str) -> str:
    location = detail["loc"]
    key = _dotted(location)
    where = f"{source}:{_line(tree, location)}: {key}" if key else f"{source}:{_line(tree, location)}"
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key.{_suggest(location)}"
        case "literal_error" | "enum":
            return f"{where}: {_short(detail['input'])} is not one of {detail['ctx']['expected']}."
        case "value_error":
            return f"{where}: {str(detail['ctx']['error']).rstrip('.')}."
        case "missing":
            return f"{where}: this key is needed."
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: write keys and values below it, not {_short(detail['input'])}.{_keys_below(location)}"
        case "tuple_type" | "list_type":
            return f"{where}: write a list, not {_short(detail['input'])}."
        case "string_type" | "int_parsing" | "int_type" | "float_parsing" | "float_type" | "bool_parsing" | "bool_type":
            return f"{where}: write {_WANTED[detail['type'].partition('_')[0]]}, not {_short(detail['input'])}."
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            return f"{where}: {message}, not {_short(detail['input'])}."


def _short(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _suggest(location: tuple[int | str, ...]) -> str:
    known = _keys_at(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known here: {', '.join(known)}." if known else ""


def _keys_below(location: tuple[int | str, ...]) -> str:
    known = _keys_at(location)
    return f" Known here: {', '.join(known)}." if known else ""


def _keys_at(location: Iterable[int | str]) -> list[str]:
    model: Any = Configuration
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(part)
            model = field.annotation if field else None
        candidates = [model, *get_args(model)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _line(tree: Any, location: Iterable[int | str]) -> int:
    """The 1-based line of the deepest part of `location` that stands in the file."""
    line = 1
    node = tree
    for part in location:
        try:
            if isinstance(node, CommentedMap):
                line = node.lc.key(part)[0] + 1
            elif isinstance(node, CommentedSeq):
                line = node.lc.item(part)[0] + 1
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line
