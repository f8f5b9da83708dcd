"""How many positions a model was made for, which is not always what its config calls so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["MOVING", "TYPES", "kinds_of", "moves_beyond", "position_limit"]

TYPES = ("default", "linear", "llama3", "yarn", "proportional")
"""Of rotary embedding, whose frequencies stay."""
MOVING = ("dynamic", "longrope")
"""Whose frequencies are others for all positions, once a forward has one beyond a limit."""


def position_limit(config: Any) -> int | None:
    """Tokens that a text may have: `max_position_embeddings`, or factor x original length where YaRN makes that more.

    YaRN (arXiv 2309.00071) is switched on in a config that often keeps the `max_position_embeddings` from before. With
    the other types it counts what scaling has made possible already. None: the config sets no limit.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if not stated:
        return None
    return min(_limit(kind, int(stated)) for kind in kinds_of(config))


def kinds_of(config: Any) -> list[Mapping[str, Any]]:
    """The rotary embeddings of all kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]


def moves_beyond(config: Any) -> tuple[str, int] | None:
    """A type of `MOVING` that a model has, and the positions within which it stays; None: there is none."""
    found = []
    for kind in kinds_of(config):
        if (name := kind.get("rope_type")) in MOVING:
            stated = config.max_position_embeddings
            limit = stated if name == "dynamic" else kind.get("original_max_position_embeddings") or stated
            found.append((str(name), int(limit)))
    return min(found, key=lambda item: item[1], default=None)


def _limit(kind: Mapping[str, Any], stated: int) -> int:
    if kind.get("rope_type") != "yarn" or not kind.get("factor"):
        return stated
    return max(stated, int(kind["factor"] * (kind.get("original_max_position_embeddings") or stated)))
