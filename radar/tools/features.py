"""Does a head read this target's features? What tells a weak head from one that was made for another target.

Acceptance does not: both draft next to nothing. But a head that reads the features at all finds the target's own next
token likelier from those of the token's place than from those of some other place in the text, and to a head of
another target all places are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar.draft.eagle3 import Eagle3Draft
from radar.target.bound import Taps
from radar.target.families import decoder_of

__all__ = ["FeatureUse", "feature_use"]

SHUFFLES = 8


class FeatureUse(NamedTuple):
    """Attributes:
    share: of the comparisons, how many the features of the token's own place win; by chance 0.5.
    places: tokens that were compared.
    """

    share: float
    places: int


@torch.inference_mode()
def feature_use(model: Any, draft: Eagle3Draft, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> FeatureUse:
    """Compare the head's log-probabilities of the target's tokens with the features in their places and with features
    in random ones, of all texts.

    Args:
        model: the stock target.
        draft: the head, on the target's device, its taps named.
        texts: token ids, the target's own from `starts` on.
        starts: one a text.
    """
    kept = [(text, start) for text, start in zip(texts, starts, strict=True) if len(text) > 2]  # fewer draft nothing
    taps = draft.config.eagle_aux_hidden_state_layer_ids or ()
    features = [_features(model, text, taps).to(draft.fc.weight) for text, _ in kept]
    generator, wins, places = torch.Generator().manual_seed(0), 0.0, 0
    for (text, start), own in zip(kept, features, strict=True):
        anywhere = torch.cat(features)
        right = _log_probs(model, draft, text, start, own)
        for _ in range(SHUFFLES):
            order = torch.randperm(len(anywhere), generator=generator)[: len(text)].to(anywhere.device)
            other = _log_probs(model, draft, text, start, anywhere[order])
            wins += float((right > other).sum()) / SHUFFLES
        places += len(right)
    return FeatureUse(wins / places if places else 0.5, places)


def _features(model: Any, text: Sequence[int], layers: Sequence[int]) -> Tensor:
    """Taps side by side [T, taps * hidden]."""
    taps = Taps(decoder_of(model), layers)
    with taps.listening():
        model(torch.tensor([text], device=model.device), use_cache=False)
    found = taps.collect()
    assert found is not None, "a head has taps"
    return found[0]


def _log_probs(model: Any, draft: Eagle3Draft, text: Sequence[int], start: int, features: Tensor) -> Tensor:
    """What a first draft call gives the tokens from `start` on that it can propose, in their order."""
    ids = torch.tensor(text, device=features.device)
    embed = model.get_input_embeddings() if draft.embed_tokens is None else draft.embed_tokens
    embeds = embed(ids[None, 1:-1]).to(features)  # pair i: the feature of token i beside token i + 1; it drafts i + 2
    positions = torch.arange(len(text) - 2, device=ids.device)[None]
    scores = draft.logits(draft(embeds, draft.fuse(features[None, :-2]), positions, _attend))[0].float()
    is_label = draft.target_ids() == ids[2:, None]  # [T - 2, draft vocabulary]
    is_label &= (torch.arange(2, len(text), device=ids.device) >= start)[:, None]
    return scores.log_softmax(-1)[is_label]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
