"""The kinds of value that the configuration's models are made of: durations, sizes, sections."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

_DURATION = re.compile(r"(?P<n>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(?P<n>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?)?B?")
_BYTES = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise ValueError("write a duration such as 300ms, 30s, 10m, 2h or 7d")
        return float(match["n"]) * _SECONDS[match["unit"]]
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if not match:
            raise ValueError("write a size such as 500M, 4G or 10Gi")
        return int(float(match["n"]) * _BYTES[match["unit"]])
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_duration, json_schema_input_type=float | str),
    Field(ge=0),
    PlainSerializer(float, return_type=float),
]
"""A duration: a number of seconds, or text such as `300ms`, `30s`, `10m`, `2h`, `7d`."""

Bytes = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str), Field(ge=0)]
"""A size: a number of bytes, or text such as `500M`, `4G`, `10Gi`."""


class Section(BaseModel):
    """A mapping of the file: no key but the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
