"""How many positions a model was made for, which is not always what its config calls so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["position_limit"]


def position_limit(config: Any) -> int | None:
    """Tokens that a text may have: `max_position_embeddings`, or factor x original length where YaRN makes that more.

    YaRN (arXiv 2309.00071) is switched on in a config that often keeps the `max_position_embeddings` from before. With
    the other types it counts what scaling has made possible already. None: the config sets no limit.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if not stated:
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]  # of layers
    return min(_limit(kind, int(stated)) for kind in kinds)


def _limit(kind: Mapping[str, Any], stated: int) -> int:
    if kind.get("rope_type") != "yarn" or not kind.get("factor"):
        return stated
    return max(stated, int(kind["factor"] * (kind.get("original_max_position_embeddings") or stated)))
