"""Every published layout gives the same head, every flag its formula, and a damaged file an error that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import VOCAB, tiny_draft
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radar.config import DraftConfig, RopeScaling
from radar.draft.checkpoint import LoadedDraft, load_draft_with_report, save_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.formats import FORMATS
from radar.draft.rope import attention_factor, inverse_frequencies

Files = tuple[dict[str, Any], dict[str, Tensor]]
CPU = torch.device("cpu")
FUZZ = settings(
    deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["bin", "safetensors", "shards"])
def test_every_layout_gives_the_same_head(tmp_path: Path, layout: str, kind: str) -> None:
    name, _, writer, changes = LAYOUTS[layout]
    draft = head(**changes)
    found, report = load(write(tmp_path, *writer(draft), kind), draft.config.target_hidden_size)
    assert found.config == draft.config
    assert same(found, draft)
    assert report.format == name
    assert (found.embed_tokens is not None) == draft.config.own_embedding


def test_every_format_has_a_writer_here() -> None:
    assert {name for name, *_ in LAYOUTS.values()} == {entry.name for entry in FORMATS}


def test_the_report_says_what_was_used_left_and_assumed(tmp_path: Path) -> None:
    config, tensors = speculators(head(**LAYOUTS["speculators"][3]))
    report = load(write(tmp_path, config, tensors)).report
    assert set(report.used) == tensors.keys() - {"verifier_lm_head.weight"}
    assert report.unused[0] == "verifier_lm_head.weight"
    assert "config.json: initializer_range" in report.unused
    assert report.assumed == ()
    assert report.doubtful == ()
    report = load(write(tmp_path, *angelslim(head(rope_theta=1e6)))).report
    text = str(report)
    assert text.startswith("draft head of the AngelSlim format, 15 tensors used")
    assert "assumed: the last 3 rows of fc.weight are exit signals" in text
    assert "assumed: taps are not stated: EAGLE-3's 2, N // 2, N - 3" in text
    report = load(write(tmp_path, *safeailab(head()))).report
    assert "rope_theta is not stated: 10000, whatever the target's is" in report.assumed
    assert set(report.doubtful) == {"rope_theta", "eagle_aux_hidden_state_layer_ids"}


# ---- taps ----


@pytest.mark.parametrize(
    ("edit", "wanted", "doubtful"),
    [
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 15, 28]}}, (2, 16, 29), True),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 30, 58]}}, (2, 30, 58), True),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, None, True),
        ({"eagle_aux_hidden_state_layer_ids": [2, 16, 29]}, (2, 16, 29), False),
        ({"eagle_aux_hidden_state_layer_ids": [1, 46, 90]}, (1, 46, 90), True),
        ({"target_layer_ids": [1, 9, 17]}, (2, 10, 18), False),
        ({}, None, True),
        (
            {
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 15, 28]},
                "eagle_aux_hidden_state_layer_ids": [3, 5, 7],
            },
            (3, 5, 7),
            False,
        ),
    ],
)
def test_who_counts_taps_from_what(tmp_path: Path, edit: Any, wanted: Any, doubtful: bool) -> None:
    config, tensors = safeailab(head())
    loaded = load(write(tmp_path, config | edit, tensors))
    assert loaded.draft.config.eagle_aux_hidden_state_layer_ids == wanted
    assert ("eagle_aux_hidden_state_layer_ids" in loaded.report.doubtful) == doubtful


# ---- sizes and vocabularies ----


def test_what_a_diff_of_a_llama_config_leaves_out(tmp_path: Path) -> None:
    """speculators nests only what differs from LlamaConfig: 32 heads and an epsilon of 1e-6 are never written."""
    draft = head(num_attention_heads=32, num_key_value_heads=4, rms_norm_eps=1e-6, norm_before_residual=True)
    config, tensors = speculators(draft)
    config["transformer_layer_config"] = {"model_type": "llama", "hidden_size": 32, "num_key_value_heads": 4}
    del config["eagle_aux_hidden_state_layer_ids"], config["norm_before_fc"]
    found, report = load(write(tmp_path, config, tensors))
    assert found.config == draft.config
    assert same(found, draft)
    assert "num_attention_heads is not stated: 32, which speculators leaves out" in report.assumed
    assert "intermediate_size is not stated: 40, from the tensors" in report.assumed


def test_norm_before_residual_must_be_stated_where_readers_differ(tmp_path: Path) -> None:
    config, tensors = speculators(head(norm_before_fc=True))
    del config["norm_before_residual"]
    write(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=r"does not state norm_before_residual.*radar doctor"):
        load(tmp_path)
    found, report = load(tmp_path, strict=False)
    assert not found.config.norm_before_residual
    assert "norm_before_residual" in report.doubtful


def test_a_tied_lm_head_is_the_embedding(tmp_path: Path) -> None:
    draft = head(own_embedding=True, draft_vocab_size=VOCAB)
    config, tensors = safeailab(draft)
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match=r"missing lm_head.weight \[17, 32\]; heads that borrow the target's"):
        load(write(tmp_path, config, tensors))
    found = load(write(tmp_path, config | {"tie_word_embeddings": True}, tensors)).draft
    assert torch.equal(found.lm_head.weight, tensors["embed_tokens.weight"])


def vocabulary(tmp_path: Path, **maps: Tensor | None) -> LoadedDraft:
    config, tensors = safeailab(head())
    tensors = {name: tensor for name, tensor in (tensors | maps).items() if tensor is not None}
    return load(write(tmp_path, config, tensors))


def test_offsets_and_ids_are_told_apart_by_their_values(tmp_path: Path) -> None:
    draft = head()
    ids = draft.d2t + torch.arange(13)
    for maps, sentence in [
        ({"d2t": ids}, "d2t holds target ids, not offsets"),
        ({"d2t": ids, "t2d": None}, "t2d is missing: it marks what d2t maps to; d2t holds target ids, not offsets"),
        ({"t2d": None}, "t2d is missing: it marks what d2t maps to"),
        ({"d2t": None}, "d2t is missing: the target ids that t2d marks, ascending"),
        ({"t2d": draft.t2d.to(torch.uint8)}, None),
        ({"d2t": draft.d2t.int()}, None),
    ]:
        found, report = vocabulary(tmp_path, **maps)
        assert same(found, draft)
        assert sentence is None or sentence in report.assumed


def test_maps_that_could_be_either_are_read_as_offsets(tmp_path: Path) -> None:
    """Ids 0, 2, 4, ... as offsets are ids 0, 1, 2, ...: `t2d` decides, and without it every trainer writes offsets."""
    small = head(draft_vocab_size=8)
    config, tensors = safeailab(small)
    tensors["d2t"] = torch.arange(8)
    tensors["t2d"] = torch.arange(17) < 8
    found, report = load(write(tmp_path, config, tensors))
    assert found.d2t.tolist() == [0] * 8
    assert "d2t holds target ids, not offsets" in report.assumed
    del tensors["t2d"]
    found, report = load(write(tmp_path, config, tensors))
    assert found.d2t.tolist() == list(range(8))
    assert any("d2t could be ids as well" in sentence for sentence in report.assumed)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"d2t": torch.arange(13).flip(0), "t2d": None}, "maps to no ascending target ids below 17"),
        ({"d2t": torch.full((13,), 9), "t2d": None}, "maps to no ascending target ids below 17"),
        ({"d2t": torch.zeros(12, dtype=torch.int64)}, r"d2t has shape \[12\], expected \[13\]"),
        ({"d2t": torch.zeros(13)}, r"d2t has type torch.float32, expected integers"),
        ({"t2d": torch.arange(17)}, "t2d must mark target ids by 0 and 1"),
        ({"t2d": torch.arange(17) < 12, "d2t": None}, "t2d marks 12 target ids, lm_head scores 13"),
        ({"d2t": None, "t2d": None}, r"missing d2t \[13\]\n  missing t2d \[17\]"),
    ],
)
def test_wrong_maps_are_refused(tmp_path: Path, maps: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabulary(tmp_path, **maps)


# ---- what is refused, by name ----


@pytest.mark.parametrize(
    ("writer", "edit", "message"),
    [
        (modelopt, {"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state=False is not supported"),
        (modelopt, {"eagle_config": {"use_last_layernorm": False}}, "use_last_layernorm=False is not supported"),
        (modelopt, {"eagle_config": {"use_mtp_layernorm": True}}, "use_mtp_layernorm=True is not supported"),
        (modelopt, {"eagle_config": 3}, "eagle_config has the wrong type: expected an object, got 3"),
        (modelopt, {"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "latent attention"),
        (speculators, {"speculators_model_type": "dflash"}, "speculators_model_type='dflash' is not supported"),
        (speculators, {"transformer_layer_config": []}, "transformer_layer_config has the wrong type"),
        (specforge, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        (specforge, {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type has the wrong type"),
        (specforge, {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3 needs low_freq_factor, high_fr"),
        (specforge, {"rope_scaling": {"rope_type": "yarn"}}, "rope type yarn needs factor"),
        (specforge, {"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor has the wrong type or value"),
        (specforge, {"rope_scaling": {"type": "default", "mrope_section": [1]}}, "rope keys mrope_section are not"),
        (specforge, {"rope_scaling": {"type": "linear", "factor": 2, "long_factor": [1]}}, "keys long_factor are not"),
        (specforge, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        (specforge, {"num_aux_hidden_states": 5}, "num_aux_hidden_states=5 contradicts its 3 taps"),
        (specforge, {"norm_before_fc": True}, "two ways to norm the taps"),
        (specforge, {"fc_norm": False}, r"unknown fc_norm.0.weight \[32\]"),
        (deepspec, {"target_layer_ids": "1,2"}, "target_layer_ids has the wrong type"),
        (safeailab, {"norm_before_fc": True}, r"missing input_norm.weight \[96\]"),
        (safeailab, {"own_embedding": True}, r"missing embed_tokens.weight \[17, 32\]"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path: Path, writer: Any, edit: Any, message: str) -> None:
    changes = next(item[3] for item in LAYOUTS.values() if item[2] is writer)
    config, tensors = writer(head(**changes))
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, config | edit, tensors))


def test_several_layers_and_strangers_are_refused(tmp_path: Path) -> None:
    config, tensors = speculators(head(**LAYOUTS["speculators"][3]))
    tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(40, 32)
    with pytest.raises(ValueError, match=r"unknown layers.1.mlp.up_proj.weight \[40, 32\]"):
        load(write(tmp_path, config, tensors))
    with pytest.raises(ValueError, match=r"no EAGLE-3 head of a known format.*found a, b"):
        load(write(tmp_path, config, {"a": torch.zeros(1), "b": torch.zeros(1)}))
    config, tensors = safeailab(head())
    with pytest.raises(ValueError, match=r"two tensors .* mean norm.weight"):
        load(write(tmp_path, config, tensors | {"model.norm.weight": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"hidden size is 32 and the target's 48: .* embedding of its own"):
        load(write(tmp_path, config, tensors), 48)
    tensors["norm.weight"] = tensors["norm.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"norm.weight has type torch.float8_e4m3fn"):
        load(write(tmp_path, config, tensors))


def test_shards_must_be_what_the_index_says(tmp_path: Path) -> None:
    write(tmp_path, *safeailab(head()), "shards")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for change, message in [
        ({"fc.weight": "../outside.safetensors"}, "not a file of its folder"),
        ({"more.weight": places["fc.weight"]}, "they differ in more.weight"),
        ({"fc.weight": places["lm_head.weight"]}, "they differ in fc.weight"),
        ({"fc.weight": 3}, "must hold a weight_map"),
    ]:
        index.write_text(json.dumps({"weight_map": places | change}))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / places["fc.weight"]).unlink()
    with pytest.raises(FileNotFoundError, match="which is missing"):
        load(tmp_path)


# ---- saving ----


@pytest.mark.parametrize("layout", ["safeailab", "speculators"])
@pytest.mark.parametrize("changes", [{}, *[item[3] for item in LAYOUTS.values()]])
def test_both_layouts_load_back(tmp_path: Path, layout: Any, changes: dict[str, Any]) -> None:
    draft = head(**changes)
    save_draft(draft, tmp_path, dtype=torch.float32, layout=layout)
    found, report = load(tmp_path, draft.config.target_hidden_size)
    assert found.config == draft.config
    assert same(found, draft)
    assert any(name.startswith("layers.0.") for name in report.used) == (layout == "speculators")


def test_speculators_layout_is_what_its_readers_expect(tmp_path: Path) -> None:
    save_draft(head(norm_before_residual=True, **TAPS), tmp_path, layout="speculators")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == "eagle3"
    assert config["norm_before_residual"] is True
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 3, 4]
    assert config["draft_vocab_size"] == 13
    layer = config["transformer_layer_config"]
    assert (layer["model_type"], layer["hidden_size"], layer["head_dim"], layer["vocab_size"]) == ("llama", 32, 8, 17)
    assert load_file(tmp_path / "model.safetensors").keys() >= {"layers.0.hidden_norm.weight", "d2t", "t2d"}
    with pytest.raises(ValueError, match="layout must be 'safeailab' or 'speculators', got 'vllm'"):
        save_draft(head(), tmp_path, layout="vllm")  # type: ignore[arg-type]


# ---- the formulas, written out ----


def norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, factor: float) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers, turned by position times frequency."""
    half = x.shape[-1] // 2
    turn = torch.polar(torch.full((6, half), factor), positions[0, :, None] * frequencies)
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), -1)


def reference(draft: Eagle3Draft) -> Tensor:
    """`run` from the tensors alone: EAGLE-3 (2503.01840, section 3.1) and the flags of its successors."""
    c, w = draft.config, draft.state_dict()
    taps, embeds, positions = inputs(c)
    if c.norm_before_fc:
        taps = norm(taps, w["input_norm.weight"])
    if c.fc_norm:
        size = c.target_hidden_size
        parts = [taps[..., i * size : (i + 1) * size] for i in range(c.num_aux_hidden_states)]
        taps = torch.cat([norm(part, w[f"fc_norm.{i}.weight"]) for i, part in enumerate(parts)], -1)

    def linear(name: str, x: Tensor) -> Tensor:
        bias = w.get(f"midlayer.{name}.bias")
        return x @ w[f"midlayer.{name}.weight"].T + (0 if bias is None else bias)

    def layer(embeds: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        normed = norm(hidden, w["midlayer.hidden_norm.weight"])
        x = torch.cat((norm(embeds, w["midlayer.input_layernorm.weight"]), normed), -1)
        query, key, value = [
            linear(f"self_attn.{name}_proj", x).view(2, 6, -1, c.head_dim).transpose(1, 2) for name in "qkv"
        ]
        if c.qk_norm:
            query = norm(query, w["midlayer.self_attn.q_norm.weight"])
            key = norm(key, w["midlayer.self_attn.k_norm.weight"])
        factor = attention_factor(c.rope_scaling)
        frequencies = inverse_frequencies(c, CPU)
        out = attend(*[rotate(t, positions, frequencies, factor) for t in (query, key)], value)
        residual = normed if c.norm_before_residual else hidden
        hidden = residual + linear("self_attn.o_proj", out.reshape(2, 6, -1))
        x = norm(hidden, w["midlayer.post_attention_layernorm.weight"])
        return hidden + linear("mlp.down_proj", F.silu(linear("mlp.gate_proj", x)) * linear("mlp.up_proj", x))

    first = layer(embeds, taps @ w["fc.weight"].T, positions)
    fed = norm(first, w["norm.weight"]) if c.norm_output else first
    second = layer(embeds.flip(1), fed, positions + 1)
    return torch.cat([norm(h, w["norm.weight"]) @ w["lm_head.weight"].T for h in (first, second)])


YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
FLAGS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_output": True},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"qk_norm": True},
    {"head_dim": 16},
    {"target_hidden_size": 48, "own_embedding": True},
    {"rope_theta": 100.0},
    {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": YARN},
]


@pytest.mark.parametrize("changes", FLAGS)
def test_every_flag_is_its_formula(changes: dict[str, Any]) -> None:
    draft = head(**changes)
    torch.testing.assert_close(run(draft), reference(draft), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("changes", [item for item in FLAGS if item])
def test_every_flag_changes_the_result(changes: dict[str, Any]) -> None:
    """Otherwise the formulas above would prove nothing: the same tensors without the flag give other logits."""
    draft = head(**changes)
    if "target_hidden_size" in changes or "head_dim" in changes:
        assert draft.fc.weight.shape != head().fc.weight.shape or draft.midlayer.self_attn.q_proj.weight.shape[0] == 64
        return
    plain = Eagle3Draft(replace(draft.config, **{name: getattr(head().config, name) for name in changes}))
    plain.load_state_dict(draft.state_dict(), strict=False)
    assert not torch.allclose(run(draft), run(plain), atol=1e-2)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 16.0},
        {
            "rope_type": "yarn",
            "factor": 64.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 1.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
    ],
)
def test_frequencies_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    theirs = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=65536,
        rope_parameters={**parameters, "rope_theta": 50000.0},
    )
    if parameters["rope_type"] == "default":
        frequencies, factor = 50000.0 ** -(torch.arange(0, 128, 2) / 128), 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, CPU)
    scaling = RopeScaling.from_dict(parameters)
    config = replace(head().config, head_dim=128, rope_theta=50000.0, rope_scaling=scaling)
    torch.testing.assert_close(inverse_frequencies(config, CPU), frequencies, rtol=1e-5, atol=0)
    assert attention_factor(scaling) == pytest.approx(factor)
    assert DraftConfig.from_dict(config.to_dict()) == config


# ---- damaged files ----


def outcome(folder: Path, target_hidden_size: int = 32) -> LoadedDraft | None:
    """The loaded head, or None for an error of the announced kinds that has something to say."""
    try:
        return load(folder, target_hidden_size)
    except (ValueError, FileNotFoundError) as error:
        said, kind = str(error), type(error)
    assert kind in (ValueError, FileNotFoundError), f"{kind} is a kind that nobody announced"
    assert len(said) > 20
    return None


layouts = st.sampled_from(sorted(LAYOUTS))
kinds = st.sampled_from(["safetensors", "bin", "shards"])


def made(layout: str) -> tuple[Eagle3Draft, dict[str, Any], dict[str, Tensor]]:
    _, _, writer, changes = LAYOUTS[layout]
    draft = head(**changes)
    config, tensors = writer(draft)
    return draft, config, dict(tensors)


@FUZZ
@given(data=st.data(), layout=layouts, kind=kinds)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, data: st.DataObject, layout: str, kind: str) -> None:
    draft, config, tensors = made(layout)
    write(tmp_path, config, tensors, kind)
    file = data.draw(st.sampled_from(sorted(tmp_path.iterdir())))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert outcome(tmp_path, draft.config.target_hidden_size) is None


@FUZZ
@given(data=st.data(), layout=layouts, kind=kinds)
def test_a_changed_byte_is_an_error_or_a_sound_head(
    tmp_path: Path, data: st.DataObject, layout: str, kind: str
) -> None:
    """A flipped bit of a weight cannot be seen; what comes out is finite, of the right sizes, with a valid map."""
    draft, config, tensors = made(layout)
    write(tmp_path, config, tensors, kind)
    file = data.draw(st.sampled_from([path for path in sorted(tmp_path.iterdir()) if path.name != "config.json"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, min(len(content), 4000) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    loaded = outcome(tmp_path, draft.config.target_hidden_size)
    if loaded is not None:
        found = loaded.draft
        assert found.config == draft.config
        assert all(bool(torch.isfinite(parameter).all()) for parameter in found.parameters())
        targets = found.d2t + torch.arange(len(found.d2t))
        assert found.t2d.nonzero().flatten().tolist() == targets.tolist()


def damage(tensor: Tensor, how: str) -> Tensor:
    match how:
        case "flat":
            return tensor.flatten()
        case "transposed":
            square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]  # nobody can tell
            return tensor.t().contiguous() if tensor.dim() == 2 and not square else tensor[None]
        case "a row more":
            return torch.cat((tensor, tensor[:1]))
        case "a row less":
            return tensor[1:].contiguous()
        case "a column less":
            return tensor[..., 1:].contiguous()
        case "scalar":
            return tensor.flatten()[0].clone()
        case "empty":
            return tensor[:0].clone()
        case "half":
            return tensor[: max(1, len(tensor) // 2)].clone()
        case "bool" | "int8" | "int32" | "float32" | "float8_e5m2" | "complex64":
            return tensor.to(getattr(torch, how))
        case _:  # not finite
            return tensor.float().index_fill(0, torch.tensor(0), float(how))


HOW = ["flat", "transposed", "a row more", "a row less", "a column less", "scalar", "empty", "half", "bool", "int8"]
HOW += ["int32", "float32", "float8_e5m2", "complex64", "nan", "inf"]


@FUZZ
@given(data=st.data(), layout=layouts, how=st.sampled_from(HOW))
def test_a_reshaped_or_retyped_tensor_is_refused(tmp_path: Path, data: st.DataObject, layout: str, how: str) -> None:
    draft, config, tensors = made(layout)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensors[name] = damage(tensors[name], how)
    loaded = outcome(write(tmp_path, config, tensors), draft.config.target_hidden_size)
    assert loaded is None or same(loaded.draft, draft), f"{name}, {how}: accepted, and it is another head"


@FUZZ
@given(data=st.data(), layout=layouts, word=st.text(max_size=12))
def test_a_renamed_or_missing_tensor_is_refused(tmp_path: Path, data: st.DataObject, layout: str, word: str) -> None:
    draft, config, tensors = made(layout)
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    others = [name + word, word + name, f"model.{name}", name.replace(".0.", ".1."), name.replace("weight", "bias")]
    other = data.draw(st.sampled_from([*others, word, None, *sorted(tensors)]))
    if other is not None:
        tensors[other] = value
    loaded = outcome(write(tmp_path, config, tensors, "bin"), draft.config.target_hidden_size)
    assert loaded is None or same(loaded.draft, draft), f"{name} as {other}: accepted, and it is another head"


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**9, 2**70, 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 40), max_size=4),
    st.dictionaries(
        st.sampled_from(["rope_type", "type", "factor", "rope_theta", "x"]), st.integers(-1, 9), max_size=3
    ),
    st.sampled_from(["yarn", "llama3", "default", ["yarn"], {"rope_type": "yarn", "factor": 2.0}, {"type": {}}]),
)
KEYS = [
    *DraftConfig.__dataclass_fields__,
    *("rope_parameters", "target_layer_ids", "architectures", "hidden_act", "layer_types", "max_position_embeddings"),
    *("eagle_config", "transformer_layer_config", "speculators_model_type", "target_model_type", "tie_word_embeddings"),
    *("use_aux_hidden_state", "return_hidden_post_norm", "partial_rotary_factor", "quantization_config"),
]
FREE = {"rms_norm_eps", "rope_theta", "rope_scaling", "eagle_aux_hidden_state_layer_ids"}  # no tensor tells them
FREE |= {"norm_before_residual", "norm_output", "num_aux_hidden_states"}


@settings(FUZZ, max_examples=400)
@given(data=st.data(), layout=layouts, key=st.sampled_from(KEYS), value=odd, delete=st.booleans())
def test_an_odd_config_is_refused_or_read_as_it_stands(
    tmp_path: Path, data: st.DataObject, layout: str, key: str, value: Any, delete: bool
) -> None:
    draft, config, tensors = made(layout)
    config = json.loads(json.dumps(config))
    places = [config, *[part for part in config.values() if isinstance(part, dict)]]
    place = data.draw(st.sampled_from(places))
    before = place.pop(key, None)
    if not delete:
        place[key] = value
    loaded = outcome(write(tmp_path, config, tensors), draft.config.target_hidden_size)
    if loaded is None:
        return
    for name in DraftConfig.__dataclass_fields__.keys() - FREE:
        assert getattr(loaded.draft.config, name) == getattr(draft.config, name), f"{key}={value!r} changed {name}"
    if before is None and (delete or value is None):
        assert loaded.draft.config == draft.config
    if key in ("norm_before_residual", "norm_output") and place is config and not delete and value is not None:
        assert getattr(loaded.draft.config, key) is value
