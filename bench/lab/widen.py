"""Give a small pair the shapes of a large one without changing what it says: real behaviour at real cost.

The residual stream's first h dimensions are the small model's, dimension h holds a small constant, the rest stay zero.
What adds to the stream (o_proj, down_proj) is zero outside of the small weights; everything else that is not the small
model's is random, so that it costs what any weights cost. Norms run over H dimensions instead of h: their gains shrink
by sqrt(h / H) and epsilon by h / H. Layers beyond the small ones add nothing; ids beyond them have logits that never
win, through the constant.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.models import empty_draft, empty_target
from bench.shapes import Geometry
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.target.model import resolve_tap_layers

__all__ = ["WidePair", "widen"]

CONSTANT = 1e-3  # in dimension h of the stream: nothing beside the live dimensions, in a norm's mean
UNUSED = -1e7  # what the output layers of unused ids read the constant with: logits of about -1e4
STD = 0.02  # of random weights


@dataclass(frozen=True)
class WidePair:
    """A widened pair.

    Attributes:
        model: the target.
        draft: its head; its config names the taps.
        layers: where the small model's layers stand.
    """

    model: LlamaForCausalLM
    draft: Eagle3Draft
    layers: tuple[int, ...]


@dataclass(frozen=True)
class _Heads:
    """Rows of the wide projections that take the small ones' rows, in their order, and the rows of whole live heads."""

    query: Tensor
    key: Tensor
    live_query: Tensor
    repeat: int  # wide key-value heads that hold a copy of the same small one

    def copies(self, small: Tensor, dim: int) -> Tensor:
        """Rows of a small key or value projection, each head `repeat` times."""
        return small.unflatten(0, (-1, dim)).repeat_interleave(self.repeat, dim=0).flatten(0, 1)


@torch.no_grad()
def widen(
    model: Any, draft: Eagle3Draft, geometry: Geometry, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> WidePair:
    """The pair in the shapes of `geometry`. It is made on the device, layer by layer: the host holds no copy.

    Query and key-value heads may come in another ratio (a small key-value head is then copied), and a head dimension
    may grow by a whole factor: the small frequencies are among the wide ones.

    Args:
        model, draft: a Llama and its EAGLE-3 head of the plain form, anywhere; they are left as they are.
        geometry: to reach.
        device: of the wide pair.
        dtype: float32 or bfloat16 (float16 cannot hold what keeps unused ids down).
        seed: of the random weights.

    Raises:
        ValueError: lists what does not fit.
    """
    config, g = model.config, geometry
    problems = _problems(config, draft, g)
    if dtype not in (torch.float32, torch.bfloat16):
        problems.append(f"dtype must be float32 or bfloat16, got {dtype}")
    if problems:
        raise ValueError(f"cannot widen this pair to {g.name}: " + "; ".join(problems))
    generator = torch.Generator(device).manual_seed(seed)
    wide = empty_target(_wide_target(config, g), dtype, device)
    wide.generation_config = copy.deepcopy(model.generation_config)
    # the live layers are spread over the depth, as the features that the head reads are
    layers = tuple((2 * i + 1) * g.layers // (2 * config.num_hidden_layers) for i in range(config.num_hidden_layers))
    _fill_target(wide, model, layers, generator)

    taps = resolve_tap_layers(config.num_hidden_layers, draft.config.eagle_aux_hidden_state_layer_ids)
    taps = tuple(layers[tap - 1] + 1 if tap else 0 for tap in taps)  # right behind the layer that made the feature
    head = empty_draft(_wide_draft(draft.config, g, taps), dtype, device)
    _fill_draft(head, draft, generator)
    return WidePair(wide, head, layers)


def _problems(config: Any, draft: Eagle3Draft, g: Geometry) -> list[str]:
    problems, d = [], draft.config
    plain = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    if config.model_type != "llama" or any(getattr(config, name, value) != value for name, value in plain.items()):
        problems.append("the target is not a Llama without biases")
    if (config.rope_parameters or {}).get("rope_type", "default") != "default" or d.rope_scaling is not None:
        problems.append("rotary scaling is not supported")
    if d != replace(d, **dict.fromkeys(_FLAGS, False)):
        problems.append("the draft head is not of EAGLE-3's plain form")
    pairs = {
        "layers": (config.num_hidden_layers, g.layers),
        "hidden size, and one dimension more": (config.hidden_size + 1, g.hidden_size),
        "intermediate size": (config.intermediate_size, g.intermediate_size),
        "vocabulary": (config.vocab_size, g.vocabulary),
        "the head's intermediate size": (d.intermediate_size, g.intermediate_size),
        "draft vocabulary": (d.draft_vocab_size, g.draft_vocabulary),
        "wide draft vocabulary in the wide one": (g.draft_vocabulary, g.vocabulary),
    }
    problems += [f"{name}: {small} is more than {large}" for name, (small, large) in pairs.items() if small > large]
    for heads, kv, dim in (
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim),
        (d.num_attention_heads, d.num_key_value_heads, d.head_dim),
    ):
        if g.head_dim % dim:
            problems.append(f"head dimension {g.head_dim} is no multiple of {dim}")
        needed = kv * math.ceil(heads // kv / (g.heads // g.kv_heads))
        if needed > g.kv_heads:
            problems.append(f"{heads} query over {kv} key-value heads need {needed} of {g.kv_heads} wide ones")
    return problems


_FLAGS = (
    "norm_before_residual", "norm_output", "norm_before_fc", "fc_norm", "attention_bias", "mlp_bias", "qk_norm",
    "own_embedding",
)  # fmt: skip


def _wide_target(small: Any, g: Geometry) -> LlamaConfig:
    config = copy.deepcopy(small)
    config.hidden_size, config.intermediate_size = g.hidden_size, g.intermediate_size
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = g.heads, g.kv_heads, g.head_dim
    config.num_hidden_layers, config.vocab_size, config.tie_word_embeddings = g.layers, g.vocabulary, False
    config.rms_norm_eps = small.rms_norm_eps * small.hidden_size / g.hidden_size
    return config


def _wide_draft(small: DraftConfig, g: Geometry, taps: tuple[int, ...]) -> DraftConfig:
    return replace(
        small, hidden_size=g.hidden_size, intermediate_size=g.intermediate_size, num_attention_heads=g.heads,
        num_key_value_heads=g.kv_heads, head_dim=g.head_dim, vocab_size=g.vocabulary,
        draft_vocab_size=g.draft_vocabulary, target_hidden_size=g.hidden_size, eagle_aux_hidden_state_layer_ids=taps,
        rms_norm_eps=small.rms_norm_eps * small.hidden_size / g.hidden_size,
    )  # fmt: skip


def _fill_target(wide: LlamaForCausalLM, small: Any, layers: tuple[int, ...], generator: torch.Generator) -> None:
    live, size = small.config.hidden_size, wide.config.hidden_size
    heads = _heads(small.config, wide.config, wide.device)
    embedding = wide.model.embed_tokens.weight
    embedding.normal_(0.0, STD, generator=generator)
    _put(embedding, small.model.embed_tokens.weight, _first(small.config.vocab_size), _first(live))
    embedding[:, live] = CONSTANT
    embedding[:, live + 1 :] = 0.0
    of_wide = dict(zip(layers, small.model.layers, strict=True))
    for index, block in enumerate(wide.model.layers):
        _fill_block(block, of_wide.get(index), heads, [0], live, size, generator)
    _final_norm(wide.model.norm.weight, small.model.norm.weight, size)
    _fill_output(wide.lm_head.weight, small.lm_head.weight, _first(small.config.vocab_size), generator)


def _fill_draft(wide: Eagle3Draft, small: Eagle3Draft, generator: torch.Generator) -> None:
    live, size, taps = small.config.hidden_size, wide.config.hidden_size, small.config.num_aux_hidden_states
    weight = wide.fc.weight.normal_(0.0, STD, generator=generator).unflatten(1, (taps, size))
    weight[:, :, : live + 1] = 0.0
    weight[:live, :, :live] = small.fc.weight.to(weight).unflatten(1, (taps, live))
    weight[live, 0, live] = 1.0  # the constant goes on
    heads = _heads(small.config, wide.config, weight.device)
    # the attention reads an embedding and a feature side by side, each of them with its own constant
    _fill_block(wide.midlayer, small.midlayer, heads, [0, 1], live, size, generator)
    _gains(wide.midlayer.hidden_norm.weight, small.midlayer.hidden_norm.weight, size)
    _final_norm(wide.norm.weight, small.norm.weight, size)
    old = small.d2t.cpu() + torch.arange(len(small.d2t))
    used = torch.zeros(wide.config.vocab_size, dtype=torch.bool)
    used[old] = True
    order = torch.arange(wide.config.vocab_size)
    spare = torch.cat((order[small.config.vocab_size :], order[: small.config.vocab_size][~used[: len(small.t2d)]]))
    ids = torch.cat((old, spare))[: wide.config.draft_vocab_size].sort().values
    wide.set_draft_vocabulary(ids.to(weight.device))
    _fill_output(wide.lm_head.weight, small.lm_head.weight, torch.searchsorted(ids, old), generator)


def _heads(small: Any, wide: Any, device: torch.device) -> _Heads:
    """`small`, `wide`: configs of a target or a head."""
    group = small.num_attention_heads // small.num_key_value_heads
    wide_group = wide.num_attention_heads // wide.num_key_value_heads
    repeat = math.ceil(group / wide_group)
    dim, wide_dim = small.head_dim, wide.head_dim
    # rotary pairs are (i, i + dim / 2) of frequency base^(-2 i / dim): wide pair i * wide_dim / dim has the same one
    half = torch.arange(dim // 2) * (wide_dim // dim)
    within = torch.cat((half, half + wide_dim // 2))
    query_heads = [
        (kv * repeat + i // wide_group) * wide_group + i % wide_group
        for kv in range(small.num_key_value_heads)
        for i in range(group)
    ]
    kv_heads = list(range(small.num_key_value_heads * repeat))

    def rows(heads: list[int], inside: Tensor) -> Tensor:
        return (torch.tensor(heads)[:, None] * wide_dim + inside).flatten().to(device)

    return _Heads(rows(query_heads, within), rows(kv_heads, within), rows(query_heads, torch.arange(wide_dim)), repeat)


def _fill_block(
    block: Any, small: Any, heads: _Heads, parts: list[int], live: int, size: int, generator: torch.Generator
) -> None:
    """A decoder layer; small None: one that adds nothing.

    Args:
        parts: the attention's input is this many streams side by side.
        live, size: h and H.
    """
    attention, mlp = block.self_attn, block.mlp
    for module in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        module.weight.normal_(0.0, STD, generator=generator)
    for module in (attention.o_proj, mlp.down_proj):
        module.weight.zero_()
    if small is None:
        return
    theirs = small.self_attn
    columns = torch.cat([_first(live) + part * size for part in parts])
    constants = torch.tensor([live + part * size for part in parts])
    dim = small.self_attn.head_dim
    scale = (attention.head_dim / dim) ** 0.5  # scores are divided by the square root of the wide dimension
    attention.q_proj.weight[heads.live_query] = 0.0
    _put(attention.q_proj.weight, theirs.q_proj.weight * scale, heads.query, columns, constants)
    for ours, small_weight in ((attention.k_proj, theirs.k_proj.weight), (attention.v_proj, theirs.v_proj.weight)):
        _put(ours.weight, heads.copies(small_weight, dim), heads.key, columns, constants)
    neurons, one, constant = _first(small.mlp.gate_proj.weight.shape[0]), _first(live), torch.tensor([live])
    _put(mlp.gate_proj.weight, small.mlp.gate_proj.weight, neurons, one, constant)
    _put(mlp.up_proj.weight, small.mlp.up_proj.weight, neurons, one, constant)
    _put(attention.o_proj.weight, theirs.o_proj.weight, one, heads.query)
    _put(mlp.down_proj.weight, small.mlp.down_proj.weight, one, neurons)
    for name in ("input_layernorm", "post_attention_layernorm"):
        _gains(getattr(block, name).weight, getattr(small, name).weight, size)


def _first(count: int) -> Tensor:
    return torch.arange(count)


def _put(weight: Tensor, small: Tensor, rows: Tensor, columns: Tensor, constants: Tensor | None = None) -> None:
    """Write the small weights to rows x columns; those rows do not read the constants."""
    rows, columns = rows.to(weight.device), columns.to(weight.device)
    if constants is not None:
        weight[rows[:, None], constants.to(weight.device)] = 0.0
    weight[rows[:, None], columns] = small.to(weight)


def _gains(weight: Tensor, small: Tensor, size: int) -> None:
    weight.fill_(1.0)
    weight[: len(small)] = (small.float() * (len(small) / size) ** 0.5).to(weight)


def _final_norm(weight: Tensor, small: Tensor, size: int) -> None:
    _gains(weight, small, size)
    weight[len(small) + 1 :] = 0.0


def _fill_output(weight: Tensor, small: Tensor, rows: Tensor, generator: torch.Generator) -> None:
    """lm_head: `rows` are those of the small one, all others never win."""
    live = small.shape[1]
    weight.normal_(0.0, STD, generator=generator)
    weight[:, :live] = 0.0
    weight[:, live] = UNUSED
    _put(weight, small, rows, _first(live), torch.tensor([live]))
