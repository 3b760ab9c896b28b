"""The configuration file: models, validation with line numbers, JSON Schema, hot reload."""

from prebinder.config.load import json_schema, load, parse
from prebinder.config.models import Configuration, RepositoryConfig
from prebinder.config.watch import LiveConfiguration

__all__ = ["Configuration", "LiveConfiguration", "RepositoryConfig", "json_schema", "load", "parse"]
