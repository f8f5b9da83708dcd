"""Run a prompt through the target, and through the draft head beside it, in chunks of one fixed shape."""

from __future__ import annotations

import torch
from torch import Tensor

from radar.draft.drafter import Drafter
from radar.target import TargetModel

__all__ = ["PREFILL_ROWS", "prefill"]

PREFILL_ROWS = 64  # one word of ancestor bits; every chunk is padded to it, so no new shape is ever compiled


def prefill(target: TargetModel, input_ids: Tensor, drafter: Drafter | None = None) -> tuple[Tensor, Tensor]:
    """Fill the caches with a prompt.

    Args:
        target, drafter: with empty caches; without a drafter only the target runs.
        input_ids: [B, P] on the target's device, P >= 1.

    Returns:
        The target's first token [B], and the taps of the prompt's last position [B, 1, taps * hidden]: with that token
        they are the pair that the first `Drafter.begin` adds.
    """
    length = input_ids.shape[1]
    target.cache.set_window(length + PREFILL_ROWS)
    if drafter is not None:
        drafter.cache.set_window(length + PREFILL_ROWS)
    padded = torch.nn.functional.pad(input_ids, (0, -length % PREFILL_ROWS + 1))  # one more: the pairs look ahead
    for start in range(0, length, PREFILL_ROWS):
        count = min(PREFILL_ROWS, length - start)
        out = target.forward_chain(padded[:, start : start + PREFILL_ROWS])
        target.advance(count)
        if drafter is not None:
            # pairs (token t + 1, feature t); the last token's partner is not known yet
            known = count - 1 if start + count == length else count
            drafter.extend(padded[:, start + 1 : start + PREFILL_ROWS + 1], out.aux_hidden_states, known)
    last = out.hidden_states[:, count - 1 : count]
    token = target.logits(last)[:, 0].argmax(dim=-1)
    return token, out.aux_hidden_states[:, count - 1 : count]
