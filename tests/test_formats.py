"""Every published layout gives the same head, and what is in doubt or wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_layouts import (
    LAYOUTS,
    TAPS,
    angelslim,
    deepspec,
    head,
    load,
    modelopt,
    safeailab,
    same,
    specforge,
    speculators,
    write,
)
from fakes import VOCAB
from safetensors.torch import load_file
from torch import Tensor

from radar.draft.checkpoint import LoadedDraft, save_draft
from radar.draft.formats import FORMATS


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
        ({"d2t": -torch.arange(13), "t2d": None}, "maps to no 13 different target ids below 17"),
        ({"d2t": torch.full((13,), 9), "t2d": None}, "maps to no 13 different target ids below 17"),
        ({"d2t": torch.ones(13, dtype=torch.bool)}, r"d2t has type torch.bool, expected integers"),
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
        (speculators, {"speculators_model_type": "other"}, "speculators_model_type='other' is not supported"),
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


def test_strangers_are_refused(tmp_path: Path) -> None:
    config, tensors = speculators(head(**LAYOUTS["speculators"][3]))
    with pytest.raises(ValueError, match=r"no EAGLE-3 head of a known format.*found a, b"):
        load(write(tmp_path, config, {"a": torch.zeros(1), "b": torch.zeros(1)}))
    config, tensors = safeailab(head())
    with pytest.raises(ValueError, match=r"two tensors .* mean norm.weight"):
        load(write(tmp_path, config, tensors | {"model.norm.weight": torch.ones(32)}))


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
