"""Rows of ids [B, P] with padding on the left, as transformers takes them, and the texts that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from radar.errors import UsageError
from radar.generation.prepare import Prepared

__all__ = ["padded", "paddings", "row_of"]


def paddings(prepared: Prepared) -> list[int]:
    """Of each row, how many ids on the left are padding.

    Raises UsageError for a mask that says anything else, or leaves a row nothing.
    """
    mask, ids = prepared.for_model.get("attention_mask"), prepared.input_ids
    if mask is None:
        return [0] * len(ids)
    if mask.shape != ids.shape:
        raise UsageError(f"attention_mask must be of the ids' shape {list(ids.shape)}, got {list(mask.shape)}")
    zeros = mask == 0
    counts = zeros.sum(dim=-1)
    places = torch.arange(ids.shape[1], device=counts.device)
    if not torch.equal(zeros, places < counts[:, None]):
        raise UsageError(
            "RADAR cannot honour an attention_mask with zeros behind a one: pad on the left "
            "(tokenizer.padding_side='left'), or pass a mask of ones, if the ids hold pad_token_id and are meant to: "
            "without a mask transformers takes that for padding"
        )
    found: list[int] = counts.tolist()
    if ids.shape[1] in found:
        raise UsageError(f"row {found.index(ids.shape[1])} of the ids is nothing but padding: give it a token at least")
    return found


def row_of(prepared: Prepared, row: int, padding: int) -> Prepared:
    """One row of what was prepared for several, without its padding."""
    for_model: dict[str, Any] = {name: value for name, value in prepared.for_model.items() if name != "attention_mask"}
    if (places := for_model.get("position_ids")) is not None:
        for_model["position_ids"] = places.expand(len(prepared.input_ids), -1)[row : row + 1, padding:]
    return replace(prepared, input_ids=prepared.input_ids[row : row + 1, padding:], for_model=for_model)


def padded(texts: Sequence[Sequence[int]], pad: int | None) -> list[list[int]]:
    """Rows of one length, the short ones filled on the right. `pad` may be None where they are of one length."""
    most = max(map(len, texts))
    return [[*text, *[pad] * (most - len(text))] for text in texts]  # type: ignore[list-item]
