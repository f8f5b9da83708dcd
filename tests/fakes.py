"""Tiny random models: small vocabularies, so that random drafts are right often enough to matter."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from radar import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}
VOCAB = 17
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tiny_target(family: str = "llama", *, seed: int = 0, vocab_size: int = VOCAB, **overrides: Any) -> Any:
    """A random model of five layers whose greedy text is not constant."""
    config_class, model_class, extra = FAMILIES[family]
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model = model_class(config_class(**{**settings, **extra, **overrides})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.to(DEVICE)


def tiny_draft(*, seed: int = 0, vocab_size: int = VOCAB, draft_vocab_size: int | None = None) -> Eagle3Draft:
    """A random head for `tiny_target`; its draft vocabulary is a random subset unless it is the whole one."""
    draft_vocab_size = draft_vocab_size or vocab_size - 4
    torch.manual_seed(seed + 100)
    config = DraftConfig(
        hidden_size=32,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=vocab_size,
        draft_vocab_size=draft_vocab_size,
        target_hidden_size=32,
    )
    draft = Eagle3Draft(config).eval().requires_grad_(False)
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    draft.set_draft_vocabulary(torch.randperm(vocab_size)[:draft_vocab_size].sort().values)
    return draft.to(DEVICE)


def give_pages(target: Any) -> None:
    """Let each row of a batch hold all that it can."""
    if target.cache.block_table is not None:
        assert all(target.cache.reserve(row, target.cache.capacity) for row in range(len(target.cache.length)))
        target.cache.publish()


def hf_greedy(model: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    """The judge: transformers' own greedy `generate`."""
    prompt = torch.tensor([ids], device=model.device)
    out = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
    )
    return out[0, len(ids) :].tolist()  # type: ignore[no-any-return]
