"""Does a widened pair say what the small one says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radar import AutoregressiveDecoder
from radar.draft.eagle3 import Eagle3Draft
from radar.target.model import resolve_tap_layers

__all__ = ["Check", "check"]


class Check(NamedTuple):
    """What differs. Errors are relative to the small pair's largest magnitude; rounding is all that should be left.

    Attributes:
        equal_texts, prompts: greedy texts that are the same, of so many.
        logits, taps, draft_logits: errors of the target, of the features that the head reads, and of the head by
            target id, over the small one's text.
        argmax: share of places where both targets prefer the same token.
        unused: the highest probability that an id beyond the small vocabulary has anywhere.
    """

    equal_texts: int
    prompts: int
    logits: float
    taps: float
    draft_logits: float
    argmax: float
    unused: float


@torch.inference_mode()
def check(
    small: tuple[Any, Eagle3Draft], wide: tuple[Any, Eagle3Draft], prompts: Sequence[Sequence[int]], *, new_tokens: int
) -> Check:
    """Compare (target, head) pairs on prompts (token ids); taps are those that the heads' configs name."""
    length = max(map(len, prompts)) + new_tokens
    texts: list[list[list[int]]] = []
    for model, _ in (small, wide):
        decoder = AutoregressiveDecoder(model, max_length=length)
        texts.append([decoder.generate(prompt, max_new_tokens=new_tokens).token_ids for prompt in prompts])
    errors = [0.0, 0.0, 0.0]
    agreed, places, unused = 0, 0, 0.0
    for prompt, text in zip(prompts, texts[0], strict=True):
        ids = torch.tensor([[*prompt, *text]])
        ours, theirs = (_forward(model, head, ids) for model, head in (wide, small))
        vocabulary = theirs[0].shape[-1]
        for i, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
            real = wanted.isfinite()  # ids that the small head proposes
            error = (mine[..., : wanted.shape[-1]] - wanted)[real].abs().max() / wanted[real].abs().max()
            errors[i] = max(errors[i], error.item())
        agreed += int((ours[0].argmax(-1) == theirs[0].argmax(-1)).sum())
        places += ids.shape[1]
        if ours[0].shape[-1] > vocabulary:
            unused = max(unused, *(scores.softmax(-1)[..., vocabulary:].max().item() for scores in ours[::2]))
    same = sum(a == b for a, b in zip(*texts, strict=True))
    return Check(same, len(prompts), *errors, argmax=agreed / places, unused=unused)


def _forward(model: Any, head: Eagle3Draft, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """On the CPU in float32: logits [N, V], taps [N, taps, hidden], the head's logits by target id [N - 1, V]."""
    ids = ids.to(model.device)
    out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    layers = resolve_tap_layers(model.config.num_hidden_layers, head.config.eagle_aux_hidden_state_layer_ids)
    taps = torch.stack([out.hidden_states[layer] for layer in layers], dim=2)  # [1, N, taps, hidden]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

    positions = torch.arange(ids.shape[1] - 1, device=ids.device)[None]
    features = head.fuse(taps[:, :-1].flatten(2))
    drafted = head.logits(head(model.get_input_embeddings()(ids[:, 1:]), features, positions, attend))[0].float()
    targets = head.d2t + torch.arange(len(head.d2t), device=head.d2t.device)
    by_target = torch.full((len(drafted), head.config.vocab_size), -torch.inf, device=drafted.device)
    by_target[:, targets] = drafted
    return out.logits[0].float().cpu(), taps[0].float().cpu(), by_target.cpu()
