"""Pairs in the shapes of large models: random weights, so real cost and meaningless text."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.shapes import Geometry
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

__all__ = ["empty_draft", "empty_target", "random_draft", "random_target"]


def empty_target(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """A Llama that is made in its final type, on its device: a large one may not fit in float32, or the host."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def empty_draft(config: DraftConfig, dtype: torch.dtype, device: torch.device) -> Eagle3Draft:
    with torch.device(device):
        return Eagle3Draft(config).to(dtype).eval().requires_grad_(False)


def random_target(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama of this geometry that never ends a text; small weights, so that nothing overflows."""
    g = geometry
    config = LlamaConfig(
        hidden_size=g.hidden_size, intermediate_size=g.intermediate_size, num_hidden_layers=g.layers,
        num_attention_heads=g.heads, num_key_value_heads=g.kv_heads, head_dim=g.head_dim, vocab_size=g.vocabulary,
        max_position_embeddings=131072, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = empty_target(config, dtype, device)
    model.generation_config.eos_token_id = None
    return model


def random_draft(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> Eagle3Draft:
    """An EAGLE-3 head for it, with the published head's draft vocabulary."""
    g = geometry
    config = DraftConfig(
        hidden_size=g.hidden_size, intermediate_size=g.intermediate_size, num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads, head_dim=g.head_dim, vocab_size=g.vocabulary,
        draft_vocab_size=g.draft_vocabulary, target_hidden_size=g.hidden_size,
    )  # fmt: skip
    draft = empty_draft(config, dtype, device)
    with torch.device(device):
        draft.set_draft_vocabulary(torch.arange(g.draft_vocabulary) * (g.vocabulary // g.draft_vocabulary))
    return draft
