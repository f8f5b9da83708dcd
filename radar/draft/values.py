"""Values of a head's `config.json`, each read as the type that it must have; an error names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from radar.errors import FormatError

__all__ = ["read_flag", "read_indices", "read_integer", "read_positive", "wrong_value"]


def wrong_value(name: str, expected: str, value: object) -> FormatError:
    return FormatError(f"draft config: {name} has the wrong type or value: expected {expected}, got {value!r}")


def read_integer(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_value(name, "an integer", value)
    return value


def read_positive(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = values.get(name)
    value = default if value is None else value
    # a JSON integer may be too long for a float, so the range is compared before the conversion
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise wrong_value(name, "a positive number", value)
    return float(value)


def read_flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise wrong_value(name, "true or false", value)
    return value


def read_indices(values: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise wrong_value(name, "a list of layer indices", value)
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**20 for item in value):
        raise wrong_value(name, "layer indices of 0 or more", value)
    return tuple(value)
