"""Tiny random models of all families: windows shorter than a prompt, every multiplier, cap and norm off its default."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from fakes import DEVICE, VOCAB
from torch import nn

WINDOW = 24
ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
GEMMA4 = {
    "sliding_window": WINDOW, "layer_types": ALTERNATE, "head_dim": 8, "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 3.0,
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": ALTERNATE}),
    "qwen3": ("Qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "head_dim": 16}),
    "ministral": ("Ministral", {"sliding_window": WINDOW, "layer_types": ALTERNATE, "head_dim": 8}),
    "ministral3": ("Ministral3", {"sliding_window": WINDOW, "head_dim": 8, "rope_parameters": {
        **YARN, "llama_4_scaling_beta": 0.3}}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [1], "norm_topk_prob": True}),
    "qwen3_moe_window": ("Qwen3Moe", {**EXPERTS, "head_dim": 8, "use_sliding_window": True, "sliding_window": WINDOW}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW, "head_dim": 8,
                           "layer_types": ALTERNATE, "rope_parameters": YARN}),
    "gemma2": ("Gemma2", {"sliding_window": WINDOW, "layer_types": ALTERNATE, "head_dim": 8, "query_pre_attn_scalar": 5,
                          "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("Gemma3", {"sliding_window": WINDOW, "layer_types": ALTERNATE, "head_dim": 8,
                               "query_pre_attn_scalar": 5, "final_logit_softcapping": 3.0}),
    "gemma4_text": ("Gemma4", {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                               "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
                               "moe_intermediate_size": 16}),
    "gemma4_shared": ("Gemma4", {**GEMMA4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8,
                                 "use_double_wide_mlp": True, "use_bidirectional_attention": "vision"}),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3_long": ("Phi3", {"max_position_embeddings": 2800, "sliding_window": None, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e2, "partial_rotary_factor": 0.5, "short_factor": [2.0, 3.0],
        "long_factor": [6.0, 9.0], "original_max_position_embeddings": 1400}}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1, 1, 0], "use_sliding_window": True, "sliding_window": WINDOW,
                            "layer_types": ALTERNATE}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7,
                            "logits_scaling": 2.0}),
    "glm": ("Glm", {"head_dim": 8, "pad_token_id": 0}),
    "glm4": ("Glm4", {"head_dim": 8, "attention_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "llama4_text": ("Llama4", {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
                               "interleave_moe_layer_step": 2, "no_rope_layers": [1, 1, 0, 1, 1], "head_dim": 8,
                               "attention_chunk_size": 256, "floor_scale": 257}),
}  # fmt: skip
"""By a name of ours: prefix of the classes, and settings."""


def config_class(name: str) -> Any:
    prefix = OTHERS[name][0]
    return getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")


def tiny_family(name: str, **overrides: Any) -> Any:
    """Of five layers; attention as plain code of transformers, which knows caps and sinks. Norms and biases differ."""
    prefix, extra = OTHERS[name]
    settings = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None, "attn_implementation": "eager", "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(3)  # whose texts are not one token over and over
    model = getattr(transformers, f"{prefix}ForCausalLM")(config_class(name)(**settings | extra | overrides)).eval()
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1 or "bias" in path:
            nn.init.normal_(parameter, 0.0, 1.0 if "embed" in path else 0.3)
        else:
            nn.init.normal_(parameter, 0.0 if path == "model.norm.weight" else 1.0, 0.5)  # norms, and sinks
    return model.to(DEVICE)
