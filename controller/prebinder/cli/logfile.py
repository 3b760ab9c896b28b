"""Where Prebinder's own log goes: one JSON object a line, to standard error, or into a file when a person watches.

A log that cannot be written (a full disk, a reader that went away) never ends what it tells of.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO, cast

import structlog

from prebinder.onemachine.unbreakable import Unbreakable


def log_to(path: Path | None) -> None:
    """Configure structlog and logging. Raises OSError when the file cannot be opened."""
    stream = sys.stderr
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8", buffering=1)
    pretty = path is None and stream.isatty()
    unbreakable = cast(TextIO, Unbreakable(stream))
    renderer = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=unbreakable),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(unbreakable)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
