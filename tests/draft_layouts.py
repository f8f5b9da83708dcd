"""A tiny head in every published layout: what a test writes to disk, and how it reads it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fakes import VOCAB, tiny_draft
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from radar.draft.checkpoint import LoadedDraft, load_draft_with_report
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.scaling import RopeScaling

Files = tuple[dict[str, Any], dict[str, Tensor]]
CPU = torch.device("cpu")


def head(**changes: Any) -> Eagle3Draft:
    """`tiny_draft` with other settings and every parameter random, biases and norms included."""
    base = tiny_draft().config
    draft = Eagle3Draft(replace(base, **changes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in draft.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
    draft.set_draft_vocabulary(
        torch.randperm(VOCAB, generator=generator)[: draft.config.draft_vocab_size].sort().values
    )
    return draft


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], kind: str = "safetensors") -> Path:
    for old in folder.iterdir():
        old.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "shards":
        names = sorted(tensors)
        places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
        for shard in set(places.values()):
            save_file({name: tensors[name].contiguous() for name in names if places[name] == shard}, folder / shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def load(folder: Path, target_hidden_size: int = 32, *, strict: bool = True) -> LoadedDraft:
    return load_draft_with_report(
        folder, target_hidden_size=target_hidden_size, device=CPU, dtype=torch.float32, strict=strict
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention among the new rows, as `Attend` wants it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


def inputs(config: DraftConfig) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    taps = torch.randn(2, 6, config.target_hidden_size * config.num_aux_hidden_states, generator=generator)
    return taps, torch.randn(2, 6, config.hidden_size, generator=generator), torch.arange(6).expand(2, -1) + 40


def run(draft: Eagle3Draft) -> Tensor:
    """Logits of a level on features and of a level on the head's own output."""
    taps, embeds, positions = inputs(draft.config)
    first = draft(embeds, draft.fuse(taps), positions, attend)
    second = draft(embeds.flip(1), first, positions + 1, attend)
    return torch.cat((draft.logits(first), draft.logits(second)))


def same(found: Eagle3Draft, wanted: Eagle3Draft) -> bool:
    return (
        torch.equal(run(found), run(wanted))
        and torch.equal(found.d2t, wanted.d2t)
        and torch.equal(found.t2d, wanted.t2d)
    )


# ---- the layouts, as their trainers write them ----


def flat_config(c: DraftConfig) -> dict[str, Any]:
    """The keys of EAGLE's own example config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "num_hidden_layers": 36,  # some heads' files give the target's
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "vocab_size": c.vocab_size,
        "draft_vocab_size": c.draft_vocab_size,
    }


def state(draft: Eagle3Draft, layer: str = "midlayer.", wrapper: str = "") -> dict[str, Tensor]:
    return {wrapper + name.replace("midlayer.", layer): tensor for name, tensor in draft.state_dict().items()}


def safeailab(draft: Eagle3Draft) -> Files:
    return flat_config(draft.config), state(draft)


def safeailab_70b(draft: Eagle3Draft) -> Files:
    config = flat_config(draft.config) | {"target_hidden_size": draft.config.target_hidden_size, "head_dim": 8}
    return config, state(draft)


def specforge(draft: Eagle3Draft) -> Files:
    return flat_config(draft.config) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3], "use_aux_hidden_state": True},
        "fc_norm": True,
        "norm_output": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }, state(draft)


def specforge_gpt_oss(draft: Eagle3Draft) -> Files:
    """As its files for gpt-oss: no rotary base, taps as outputs of layers, queries wider than the model."""
    taps = {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}
    config = {"architectures": ["LlamaForCausalLMEagle3"], "eagle_config": taps, "head_dim": draft.config.head_dim}
    return flat_config(draft.config) | config, state(draft)


def specforge_gemma(draft: Eagle3Draft) -> Files:
    """Names the target's type, as AngelSlim's files do, and a window that is not used."""
    config, tensors = specforge_gpt_oss(draft)
    window = {"sliding_window": 512, "use_sliding_window": False, "partial_rotary_factor": None}
    return config | window | {"target_model_type": "gemma3_text", "rope_theta": 1000000, "rope_scaling": None}, tensors


def speculators_qwen3_moe(draft: Eagle3Draft) -> Files:
    """Of a head for experts: one dense MLP, queries and keys normed, what equals Qwen3's defaults left out."""
    config, tensors = speculators(draft)
    layer = {"model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    layer |= {"head_dim": draft.config.head_dim, "intermediate_size": 40, "vocab_size": VOCAB, "layer_types": None}
    rope = {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}
    config["speculators_config"]["verifier"] = {"name_or_path": "Qwen/Qwen3-30B-A3B", "architectures": ["Qwen3Moe"]}
    return config | {"norm_before_residual": False, "transformer_layer_config": layer | rope}, tensors


def speculators(draft: Eagle3Draft) -> Files:
    layer = flat_config(draft.config)
    for key in ("architectures", "draft_vocab_size", "bos_token_id"):
        del layer[key]
    layer |= {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return {
        "architectures": ["Eagle3Speculator"],
        "draft_vocab_size": draft.config.draft_vocab_size,
        "eagle_aux_hidden_state_layer_ids": [2, 3, 4],
        "embed_requires_grad": False,
        "norm_before_fc": True,
        "norm_before_residual": True,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "a/b", "architectures": []}},
        "speculators_model_type": "eagle3",
        "speculators_version": "0.4.0",
        "target_hidden_size": None,
        "transformer_layer_config": layer,
    }, state(draft, "layers.0.") | {"verifier_lm_head.weight": torch.zeros(2, 2)}


def angelslim(draft: Eagle3Draft) -> Files:
    config = flat_config(draft.config) | {"target_model_type": "qwen3", "head_dim": 8, "rope_theta": 1000000}
    tensors = state(draft)
    tensors["fc.weight"] = torch.cat((tensors["fc.weight"], torch.ones(3, 96)))
    return config | {"architectures": ["Eagle3LlamaForCausalLM"], "tie_word_embeddings": True}, tensors


def modelopt(draft: Eagle3Draft) -> Files:
    tensors = state(draft, "layers.0.", "model.")
    del tensors["model.t2d"]
    return flat_config(draft.config) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "default", "rope_theta": 10000},
        "rope_theta": 10000,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [2, 3, 4],
            "use_aux_hidden_state": True,
            "use_input_layernorm_in_first_layer": True,
            "use_last_layernorm": True,
            "use_mtp_layernorm": False,
            "norm_before_fc": True,
            "return_hidden_post_norm": True,
        },
    }, tensors


def deepspec(draft: Eagle3Draft) -> Files:
    tensors = state(draft, "layers.0.")
    del tensors["d2t"], tensors["t2d"]
    config = flat_config(draft.config) | {"architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "head_dim": 16}
    del config["draft_vocab_size"]
    return config | {"target_layer_ids": [0, 1, 2, 3], "ttt_length": 7, "attention_bias": False}, tensors


LLAMA3 = RopeScaling(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
TAPS = {"eagle_aux_hidden_state_layer_ids": (2, 3, 4)}
LAYOUTS: dict[str, tuple[str, str, Callable[[Eagle3Draft], Files], dict[str, Any]]] = {
    "yuhuili": ("SafeAILab", "bin", safeailab, {}),
    "yuhuili 70B": ("SafeAILab", "safetensors", safeailab_70b, {"target_hidden_size": 48, "own_embedding": True}),
    "SpecForge": (
        "SpecForge",
        "safetensors",
        specforge,
        {**TAPS, "fc_norm": True, "norm_output": True, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    ),
    "speculators": (
        "speculators",
        "shards",
        speculators,
        {**TAPS, "norm_before_fc": True, "norm_before_residual": True, "own_embedding": True},
    ),
    "SpecForge for gpt-oss": ("SpecForge", "bin", specforge_gpt_oss, {**TAPS, "head_dim": 16}),
    "SpecForge for Gemma": ("SpecForge", "bin", specforge_gemma, {**TAPS, "head_dim": 16, "rope_theta": 1e6}),
    "speculators for experts": (
        "speculators",
        "safetensors",
        speculators_qwen3_moe,
        {
            **TAPS,
            "head_dim": 16,
            "qk_norm": True,
            "norm_before_fc": True,
            "own_embedding": True,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
        },
    ),
    "AngelSlim": ("AngelSlim", "bin", angelslim, {"rope_theta": 1e6}),
    "ModelOpt": (
        "ModelOpt",
        "shards",
        modelopt,
        {**TAPS, "attention_bias": True, "mlp_bias": True, "norm_before_fc": True, "norm_output": True},
    ),
    "DeepSpec": (
        "DeepSpec",
        "safetensors",
        deepspec,
        {
            "eagle_aux_hidden_state_layer_ids": (1, 2, 3, 4),
            "num_aux_hidden_states": 4,
            "head_dim": 16,
            "qk_norm": True,
            "own_embedding": True,
            "draft_vocab_size": VOCAB,
        },
    ),
}
