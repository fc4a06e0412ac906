"""How a knob is declared: a dataclass field with its meaning and limits."""

from dataclasses import field
from typing import Any


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its meaning and limits: `low`, `high` inclusive, `above`, `below` exclusive, `choices`."""
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, meaning: str) -> Any:
    """A nested group of knobs."""
    return field(default_factory=kind, metadata={"meaning": meaning})
