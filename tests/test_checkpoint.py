"""Draft heads on disk: what is written comes back, and what does not fit is named."""

import json

import pytest
import torch
from fakes import VOCAB, tiny_draft
from safetensors.torch import load_file, save_file

from radar.draft.checkpoint import load_draft, save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

RELEASED_NAMES = {
    "d2t",
    "fc.weight",
    "lm_head.weight",
    "midlayer.hidden_norm.weight",
    "midlayer.input_layernorm.weight",
    "midlayer.mlp.down_proj.weight",
    "midlayer.mlp.gate_proj.weight",
    "midlayer.mlp.up_proj.weight",
    "midlayer.post_attention_layernorm.weight",
    "midlayer.self_attn.k_proj.weight",
    "midlayer.self_attn.o_proj.weight",
    "midlayer.self_attn.q_proj.weight",
    "midlayer.self_attn.v_proj.weight",
    "norm.weight",
    "t2d",
}


def load(folder, target_hidden_size=32):
    return load_draft(folder, target_hidden_size=target_hidden_size, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def saved(tmp_path):
    save_draft(tiny_draft(), tmp_path, dtype=torch.float32)
    return tmp_path


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def same(a: Eagle3Draft, b: Eagle3Draft):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in pairs)


def test_tensor_names_are_the_released_ones(saved):
    assert set(load_file(saved / "model.safetensors")) == RELEASED_NAMES


def test_round_trip(saved):
    assert same(load(saved), tiny_draft())


def test_half_precision_round_trip(tmp_path):
    save_draft(tiny_draft(), tmp_path)
    wanted = tiny_draft().to(torch.bfloat16).float()
    assert same(load(tmp_path), wanted)


def test_rotary_frequencies_stay_exact_in_half_precision(saved):
    """A cast to bfloat16 would round them to 8 bits: at position 1000 the angle would be off by radians."""
    half = load_draft(saved, target_hidden_size=32, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.fc.weight.dtype == torch.bfloat16
    assert half.inv_freq.dtype == torch.float32
    assert torch.equal(half.inv_freq, load(saved).inv_freq)
    assert torch.equal(tiny_draft().half().float().inv_freq.cpu(), load(saved).inv_freq)


def test_released_bin_files_load(saved):
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert same(load(saved), tiny_draft())


def test_old_configs_without_the_newer_keys(saved):
    """yuhuili's files name no head_dim, no rope_theta, no target_hidden_size: 10,000, and the target's size."""
    edit_config(saved, head_dim=None, rope_theta=None, target_hidden_size=None, architectures=["LlamaForCausalLM"])
    draft = load(saved)
    assert (draft.config.head_dim, draft.config.rope_theta, draft.config.target_hidden_size) == (8, 10000.0, 32)
    assert same(draft, tiny_draft())


def test_taps_are_read_and_written(tmp_path):
    base = tiny_draft().config.to_dict() | {"eagle_aux_hidden_state_layer_ids": [1, 3]}
    config = DraftConfig.from_dict(base)
    assert (config.num_aux_hidden_states, config.eagle_aux_hidden_state_layer_ids) == (2, (1, 3))
    save_draft(Eagle3Draft(config), tmp_path)
    assert load(tmp_path).config == config


def test_full_vocabulary_needs_no_maps(tmp_path):
    draft = tiny_draft(draft_vocab_size=VOCAB)
    save_draft(draft, tmp_path, dtype=torch.float32)
    edit(tmp_path, lambda t: (t.pop("d2t"), t.pop("t2d")))
    assert same(load(tmp_path), draft)


def test_every_problem_is_listed(saved):
    def change(tensors):
        tensors.pop("norm.weight")
        tensors["midlayer.self_attn.q_proj.bias"] = torch.zeros(32)
        tensors["fc.weight"] = torch.zeros(32, 64)
        tensors["lm_head.weight"][0, 0] = torch.nan

    edit(saved, change)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load(saved)
    text = str(error.value)
    assert "missing norm.weight [32]" in text
    assert "unknown midlayer.self_attn.q_proj.bias [32]" in text
    assert "fc.weight has shape [32, 64], expected [32, 96]" in text
    assert "lm_head.weight holds values that are not finite" in text


def test_contradicting_maps_are_refused(saved):
    edit(saved, lambda t: t.__setitem__("t2d", ~t["t2d"]))
    with pytest.raises(ValueError, match="t2d does not mark"):
        load(saved)


def test_an_eagle_1_head_is_refused(saved):
    """No hidden_norm, and fc reads two states: it would run at an acceptance of 1.0."""

    def change(tensors):
        tensors.pop("midlayer.hidden_norm.weight")
        tensors["fc.weight"] = torch.zeros(32, 64)

    edit(saved, change)
    with pytest.raises(ValueError, match=r"this is an EAGLE-1 or EAGLE-2 head: it reads one feature"):
        load(saved)


@pytest.mark.parametrize("keep", [0, 7, 100, 3000])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files_are_refused(saved, keep, name):
    if name.endswith("bin"):
        torch.save(load_file(saved / "model.safetensors"), saved / name)
        (saved / "model.safetensors").unlink()
    file = saved / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load(saved)


def test_pickles_of_other_things_are_refused(saved):
    (saved / "model.safetensors").unlink()
    for content in ({"state": 3}, [1, 2], Eagle3Draft):
        torch.save(content, saved / "pytorch_model.bin")
        with pytest.raises(ValueError, match="tensors"):
            load(saved)


def test_missing_files_are_named(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors or pytorch_model\.bin"):
        load(saved)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": None, "vocab_size": "17"}, "vocab_size has the wrong type"),
        ({"num_attention_heads": None, "head_dim": None}, "missing num_attention_heads"),
        ({"hidden_size": "wide"}, "wide"),
        ({"hidden_size": 0}, "hidden_size must be an integer from 1"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "multiple of"),
        ({"draft_vocab_size": 99}, "draft_vocab_size must be an integer from 1 to 17"),
        ({"head_dim": 7}, "even"),
        ({"intermediate_size": []}, "wrong type"),
        ({"rope_parameters": 3, "rope_theta": None}, "wrong type"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is stated more than once, as 10000.0 and 500000.0"),
        ({"rope_theta": 0}, "rope_theta has the wrong type or value: expected a positive number, got 0"),
        ({"rope_theta": float("nan")}, "rope_theta has the wrong type or value"),
        ({"rope_theta": float("inf")}, "rope_theta has the wrong type or value"),
        ({"rope_theta": 10**400}, "rope_theta has the wrong type or value"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps has the wrong type"),
        ({"hidden_size": 32.5}, "hidden_size has the wrong type"),
        ({"norm_output": 1}, "norm_output has the wrong type"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised heads"),
        ({"layer_types": ["sliding_attention"]}, "sliding-window"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 3]}, r"fc\.weight has shape \[32, 96\], expected \[32, 64\]"),
        ({"eagle_aux_hidden_state_layer_ids": [2, -3, 4]}, "layer indices of 0 or more"),
        ({"norm_before_fc": True, "fc_norm": True}, "two ways to norm the taps"),
        ({"hidden_size": 64, "target_hidden_size": 64}, "hidden size is 64 and the target's 32"),
        ({"eagle_aux_hidden_state_layer_ids": 5}, "wrong type"),
    ],
)
def test_bad_configs_are_refused(saved, values, message):
    edit_config(saved, **values)
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_configs_that_are_not_json_objects_are_refused(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(saved)
