"""Whether a draft head belongs to a target, told before the first draft call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from radar.config import TreeConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError

__all__ = ["TargetSizes", "check_fit", "check_tree", "default_tree"]


class TargetSizes(NamedTuple):
    """What of a target a head depends on.

    Attributes:
        vocab_size: token ids that it knows: as many as its embedding has rows.
        tap_layers: `hidden_states` indices that feed the head.
    """

    hidden_size: int
    vocab_size: int
    tap_layers: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


def check_fit(draft: Eagle3Draft, target: TargetSizes, tree: TreeConfig) -> None:
    """Raise UsageError that lists all that does not fit.

    Vocabularies may be padded differently, as after `resize_token_embeddings`: what counts is that the target knows
    every id that the head proposes. An embedding of the head's own may end before the target's ids do
    (`radar.draft.covering`).
    """
    config = draft.config
    problems = []
    if config.target_hidden_size != target.hidden_size:
        problems.append(f"it reads features of size {config.target_hidden_size}, the target's are {target.hidden_size}")
    if config.hidden_size != target.hidden_size and not config.own_embedding:
        problems.append(
            f"its hidden size is {config.hidden_size}, but the target's embedding, which it shares, has "
            f"{target.hidden_size}"
        )
    highest = int(draft.target_ids().max())
    if highest >= target.vocab_size:
        problems.append(f"it proposes ids up to {highest}, the target's vocabulary ends at {target.vocab_size - 1}")
    if config.num_aux_hidden_states != len(target.tap_layers):
        problems.append(f"it reads {config.num_aux_hidden_states} taps, got tap_layers={target.tap_layers}")
    if config.draft_vocab_size < tree.tree_top_k:
        problems.append(f"its vocabulary of {config.draft_vocab_size} is less than tree_top_k={tree.tree_top_k}")
    weight = draft.fc.weight
    if (weight.device, weight.dtype) != (target.device, target.dtype):
        problems.append(f"it is {weight.dtype} on {weight.device}, the target {target.dtype} on {target.device}")
    if problems:
        raise UsageError("this draft head does not fit this target: " + "; ".join(problems))


def default_tree(device: torch.device) -> TreeConfig:
    """EAGLE-3's 60 nodes on a GPU, where they cost what one token costs; 32 on a CPU, where every node is paid for."""
    return TreeConfig() if device.type == "cuda" else TreeConfig(total_tokens=32)


def check_tree(value: object) -> TreeConfig | None:
    """Raise UsageError for anything that is no `TreeConfig`, nor None."""
    if value is None or isinstance(value, TreeConfig):
        return value
    meant = ": did you mean TreeConfig(**...)?" if isinstance(value, dict) else ""
    raise UsageError(f"tree must be a TreeConfig, such as TreeConfig(total_tokens=60), or None, got {value!r}{meant}")
