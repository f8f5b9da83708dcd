"""What a round of several rows is cut to, so that each pass over the weights serves as many rows as it can."""

from __future__ import annotations

__all__ = ["calls_of", "carried_of", "expanded_of", "nodes_of"]

NODES = {1: 64, 32: 128}
"""That all rows verify together, by their number: a linear layer works on 64 at a time, or on 128. More nodes cost more
than they bring, but for many rows."""
CARRIED = {2: 64, 32: 128}
"""Tokens of a prompt that a round of so many rows takes along: as many as it verifies nodes."""
CALLS = 40
"""Draft calls of a round, of all rows together: the more texts share a verification, the less is a deep tree worth."""


def nodes_of(total_tokens: int, rows: int) -> int:
    """Nodes that `rows` verify together, whose trees have `total_tokens` at most."""
    together = NODES[max(least for least in NODES if least <= rows)]
    return rows * total_tokens if rows == 1 else max(2 * rows, min(rows * total_tokens, together))


def calls_of(rows: int) -> int:
    """Draft calls of a round of so many rows, at most."""
    return max(3, CALLS // rows)


def carried_of(rows: int) -> int:
    """Tokens of a prompt that a round of so many rows takes along."""
    return CARRIED[max(least for least in CARRIED if least <= rows)] if rows >= min(CARRIED, default=rows + 1) else 0


def expanded_of(tree_top_k: int, rows: int) -> int:
    """Nodes of a row's beam that a draft call expands."""
    return min(tree_top_k, max(2, NODES[1] // rows))
