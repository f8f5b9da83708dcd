"""Drafts that cannot be used are refused by what they are, heads of another target too; nothing is half loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from draft_layouts import (
    LAYOUTS,
    head,
    load,
    modelopt,
    safeailab,
    safeailab_70b,
    same,
    specforge,
    speculators,
    speculators_qwen3_moe,
    write,
)
from fakes import tiny_target
from torch import Tensor

from radar import RadarDecoder
from radar.cli.main import main

ONE, ROW = torch.zeros(32, 32), torch.zeros(1, 96)
P_EAGLE = r"this is a P-EAGLE head: it reads a placeholder \(mask_hidden\) .* take an EAGLE-3 head"
BLOCK = "this is a block drafter .* it drafts all tokens in one call, where trees here grow by one call a level"
MEDUSA = "this is a head with Medusa heads: it drafts all tokens in one call"


def files(writer: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return writer(head(**next(item[3] for item in LAYOUTS.values() if item[2] is writer)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("writer", "edit", "more", "message"),
    [
        (speculators, {"speculators_model_type": "peagle"}, {}, P_EAGLE),
        (modelopt, {"architectures": ["PEagleDraftModel"]}, {}, P_EAGLE),
        (safeailab, {"parallel_drafting": True, "ptd_token_id": 3}, {}, P_EAGLE),
        (specforge, {}, {"model.mask_hidden": ROW, "layers.1.mlp.up_proj.weight": ONE}, P_EAGLE),
        (speculators, {"speculators_model_type": "dflash"}, {}, BLOCK),
        (specforge, {"dflash_config": {"projector_type": "dspark"}}, {}, BLOCK),
        (modelopt, {"architectures": ["Qwen3DSparkModel"]}, {}, BLOCK),
        (modelopt, {}, {"parallel_draft_heads.0.medusa_layers.0.linear.weight": ONE}, MEDUSA),
        (modelopt, {"architectures": ["Qwen3NextMTP"]}, {}, r"multi-token prediction \(MTP\): it reads"),
        (modelopt, {"architectures": ["MLPSpeculatorPreTrainedModel"]}, {}, "MLP speculator: it has no attention"),
        (speculators, {"speculators_model_type": "eagle"}, {}, "this is an EAGLE-1 or EAGLE-2 head"),
        (modelopt, {}, {"fc.weight": None, "layers.3.mlp.up_proj.weight": ONE}, "this is a language model of 4 layers"),
        (modelopt, {}, {"layers.1.mlp.up_proj.weight": ONE}, "this is a head of 2 layers: heads of one layer are"),
        (modelopt, {}, {"layers.0.mlp.experts.0.up_proj.weight": ONE}, "experts of its own: heads with one dense MLP"),
        (modelopt, {"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, {}, "latent attention: heads with queries"),
        (modelopt, {}, {"layers.0.self_attn.kv_a_proj_with_mqa.weight": ONE}, "latent attention: heads with"),
        (modelopt, {}, {"layers.0.mlp.up_proj.weight_scale": ROW}, r"quantised head \(layers.0.mlp.up_proj.weight"),
        (safeailab, {}, {"fc.weight": None, "fc.qweight": ROW.int()}, r"a quantised head \(fc.qweight, int32\)"),
        (safeailab, {}, {"norm.weight": ROW.to(torch.float8_e4m3fn)}, r"head \(norm.weight, float8_e4m3fn\)"),
        (safeailab, {"quantization_config": {"bits": 4}}, {}, "quantised heads"),
    ],
)  # fmt: skip
def test_what_it_is_and_why_not(tmp_path: Path, writer: Any, edit: Any, more: Any, message: str) -> None:
    config, tensors = files(writer)
    for name in [name for name in tensors if name.removeprefix("model.") in more]:
        del tensors[name]
    tensors |= {name: tensor for name, tensor in more.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, config | edit, tensors))


def test_no_published_head_is_taken_for_another_kind(tmp_path: Path) -> None:
    """Names of flags, biases and 8-bit marks are no signs."""
    config, tensors = files(modelopt)
    tensors["model.t2d"] = head(**LAYOUTS["ModelOpt"][3]).t2d.to(torch.uint8)
    assert load(write(tmp_path, config | {"mask_token_id": 3, "num_nextn_predict_layers": 0}, tensors)).draft


# ---- heads of another target ----


def test_a_head_of_another_size_is_one_for_another_target(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hidden size is 32 and the target's 48, so it was made for another target"):
        load(write(tmp_path, *files(safeailab)), 48)
    config, tensors = files(speculators_qwen3_moe)
    assert "made for Qwen/Qwen3-30B-A3B" in str(load(write(tmp_path, config, tensors)).report)
    with pytest.raises(ValueError, match="reads features of size 32, the target's are 48"):
        RadarDecoder(tiny_target(hidden_size=48), draft=tmp_path, max_length=64)
    del tensors["embed_tokens.weight"]
    with pytest.raises(ValueError, match="so it was made for Qwen/Qwen3-30B-A3B: a head of another size than its"):
        load(write(tmp_path, config, tensors), 48)
    with pytest.raises(ValueError, match="reads features of size 48, the target's are 32"):
        RadarDecoder(tiny_target(), draft=write(tmp_path, *files(safeailab_70b)), max_length=64)


def test_a_refused_head_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_target()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, tensors = files(safeailab)
    for wrong in ({"vocab_size": 40}, {"num_attention_heads": 8}, {"intermediate_size": 48}):
        broken = config | wrong
        more = tensors | ({"d2t": tensors["d2t"] + 20, "t2d": None} if "vocab_size" in wrong else {})
        write(tmp_path, broken, {name: tensor for name, tensor in more.items() if tensor is not None})
        with pytest.raises(ValueError, match=r"does not fit|proposes ids up to"):
            RadarDecoder(model, draft=tmp_path, max_length=64)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    write(tmp_path, config, tensors)
    assert RadarDecoder(model, draft=tmp_path, max_length=64).generate([1, 2], max_new_tokens=2).token_ids


def test_a_head_that_is_not_there_is_told_before_the_target_is_loaded(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"no draft head in .*: config\.json is missing"):
        RadarDecoder.from_pretrained(tmp_path / "target", tmp_path)
    assert main(["doctor", str(tmp_path / "target"), str(tmp_path)]) != 0
    assert f"no draft head in {tmp_path}: config.json is missing" in capsys.readouterr().err


# ---- what is padded, and what may be left out ----


@pytest.mark.parametrize("stated", [13, 16, 20])
def test_a_vocabulary_is_padded_in_one_place_and_not_in_another(tmp_path: Path, stated: int) -> None:
    """The embedding has 17 rows; config.json says another number, and `t2d` is of the one or the other."""
    draft = head(own_embedding=True)
    draft.set_draft_vocabulary(torch.arange(13))
    config, tensors = safeailab(draft)
    for marks in (tensors["t2d"], (torch.arange(20) < 13), torch.arange(14) < 13):
        found, report = load(write(tmp_path, config | {"vocab_size": stated}, tensors | {"t2d": marks}))
        assert same(found, draft)
        assert found.config == draft.config
        assert f"vocab_size is {stated} in config.json and 17 in the tensors, which count" in report.assumed
    with pytest.raises(ValueError, match=r"t2d has shape \[20\], expected \[17\]"):
        load(write(tmp_path, config, tensors | {"t2d": torch.arange(20) > 6}))
    del tensors["embed_tokens.weight"]
    found = load(write(tmp_path, config | {"vocab_size": stated}, tensors)).draft
    assert found.config.vocab_size == max(stated, 17)
    assert torch.equal(found.d2t, draft.d2t)


def test_biases_of_queries_keys_and_values_alone(tmp_path: Path) -> None:
    draft = head(attention_bias=True)
    draft.midlayer.self_attn.o_proj.bias.zero_()
    config, tensors = safeailab(draft)
    del tensors["midlayer.self_attn.o_proj.bias"]
    for stated in ({}, {"attention_bias": True}):
        found, report = load(write(tmp_path, config | stated, tensors))
        assert same(found, draft)
        assert "queries, keys and values have biases and o_proj has none: zero" in report.assumed
    del tensors["midlayer.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"unknown midlayer.self_attn.q_proj.bias"):
        load(write(tmp_path, config, tensors))
