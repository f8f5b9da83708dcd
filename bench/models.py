"""Pairs of random weights in the shapes of large models: real cost, meaningless text."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.shapes import Geometry
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft


def random_target(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama of this geometry; small weights, so that nothing overflows."""
    g = geometry
    config = LlamaConfig(
        hidden_size=g.hidden_size,
        intermediate_size=g.intermediate_size,
        num_hidden_layers=g.layers,
        num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads,
        head_dim=g.head_dim,
        vocab_size=g.vocabulary,
        max_position_embeddings=131072,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id = None
    return model


def random_draft(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> Eagle3Draft:
    """An EAGLE-3 head for it, with the published head's draft vocabulary."""
    g = geometry
    config = DraftConfig(
        hidden_size=g.hidden_size,
        intermediate_size=g.intermediate_size,
        num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads,
        head_dim=g.head_dim,
        vocab_size=g.vocabulary,
        draft_vocab_size=g.draft_vocabulary,
        target_hidden_size=g.hidden_size,
    )
    with torch.device(device):
        draft = Eagle3Draft(config).to(dtype).eval().requires_grad_(False)
        draft.set_draft_vocabulary(torch.arange(g.draft_vocabulary) * (g.vocabulary // g.draft_vocabulary))
    return draft
