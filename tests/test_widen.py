"""Widened pairs say what the small ones say, and a weight that should not count is noticed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import DEVICE, VOCAB, tiny_draft, tiny_target
from widened import check

import radar
from bench.lab.widen import widen
from bench.shapes import Geometry
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.draft.checkpoint import load_draft
from radar.target.load import load_model

PROMPTS = [[3, 1, 4, 1, 5], [2, 7, 1], [9, 9, 8, 4, 6, 0, 11]]
# hidden 32, 4 query over 2 key-value heads of 8 become ...
SHAPES = Geometry(
    name="wide", layers=9, hidden_size=96, intermediate_size=160, heads=8, kv_heads=4, head_dim=8, vocabulary=64,
    draft_vocabulary=40,
)  # fmt: skip
VARIANTS = {
    "same head ratio": SHAPES,
    "key-value heads copied": replace(SHAPES, kv_heads=8),
    "wider heads": replace(SHAPES, head_dim=32),
    "all at once": replace(SHAPES, kv_heads=8, head_dim=16, layers=5, hidden_size=40),
    "the whole vocabulary drafted": replace(SHAPES, vocabulary=20, draft_vocabulary=20),
}
OPTIONS = {"tree": TreeConfig(total_tokens=24, max_calls=6), "max_length": 256, "fallback": False}


def small_pair():
    model, draft = tiny_target(rope_theta=500.0), tiny_draft()
    for norm in [m for m in [*model.modules(), *draft.modules()] if "Norm" in type(m).__name__]:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # gains that a permutation or a lost factor would show
    return model, draft


def widened(pair, geometry, **options):
    wide = widen(*pair, geometry, device=DEVICE, dtype=torch.float32, **options)
    return wide.model, wide.draft


@pytest.mark.parametrize("name", VARIANTS)
def test_the_wide_pair_says_what_the_small_one_says(name):
    small = small_pair()
    wide = widened(small, VARIANTS[name])
    found = check(small, wide, PROMPTS, new_tokens=24)
    assert found.equal_texts == found.prompts == 3
    assert max(found.logits, found.taps, found.draft_logits) < 1e-4
    assert found.argmax == 1.0
    assert found.unused == 0.0
    assert wide[0].config.vocab_size == VARIANTS[name].vocabulary
    assert wide[1].lm_head.out_features == VARIANTS[name].draft_vocabulary


@pytest.mark.slow
def test_decoding_takes_the_same_calls_and_acceptance():
    small = small_pair()
    for policy in (FixedDepth(4), Threshold(0.15)):
        pairs = (small, widened(small, SHAPES))
        decoders = [RadarDecoder(model, draft=draft, policy=policy, **OPTIONS) for model, draft in pairs]
        for prompt in PROMPTS:
            a, b = (decoder.generate(prompt, max_new_tokens=40) for decoder in decoders)
            assert a.token_ids == b.token_ids
            assert a.metrics.stop_histogram == b.metrics.stop_histogram
            assert a.metrics.acceptance_histogram == b.metrics.acceptance_histogram
            assert a.metrics.num_accepted_draft_tokens > 0


def test_shapes_are_the_geometrys():
    model, draft = widened(small_pair(), SHAPES)
    block = model.model.layers[-1]
    assert len(model.model.layers) == 9
    assert block.self_attn.q_proj.weight.shape == draft.midlayer.self_attn.o_proj.weight.T.shape == (64, 96)
    assert block.self_attn.k_proj.weight.shape == (32, 96)
    assert block.mlp.down_proj.weight.shape == draft.midlayer.mlp.down_proj.weight.shape == (96, 160)
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (64, 96)
    assert draft.fc.weight.shape == (96, 3 * 96)
    assert draft.midlayer.self_attn.q_proj.weight.shape == (64, 2 * 96)


def test_what_cannot_reach_the_output_is_random():
    """Matrix units run faster on zeros: only what adds to the stream may be zero."""
    model, draft = widened(small_pair(), SHAPES)
    for block in (model.model.layers[0], model.model.layers[-1], draft.midlayer):
        for module in (block.self_attn.k_proj, block.self_attn.v_proj, block.mlp.gate_proj, block.mlp.up_proj):
            assert (module.weight != 0).float().mean() > 0.9
    assert (model.lm_head.weight != 0).float().mean() > 0.6


def nonzero_block(model, draft):
    model.model.layers[0].self_attn.o_proj.weight[3, -1] = 0.5


def added_layer(model, draft):
    model.model.layers[-1].mlp.down_proj.weight[0].normal_(0.0, 0.1)


def uncorrected_gain(model, draft):
    model.model.norm.weight[:32] *= 3**0.5


def uncorrected_epsilon(model, draft):
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.3


def constant_read(model, draft):
    model.model.layers[4].mlp.gate_proj.weight[:48, 32] = 1000.0


def unused_id_wins(model, draft):
    model.lm_head.weight[VOCAB + 2, 32] = 1e7


def draft_leaks(model, draft):
    draft.midlayer.self_attn.o_proj.weight[1, 32:] = 0.5


def draft_constant_lost(model, draft):
    draft.fc.weight[32, 32] = 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        nonzero_block, added_layer, uncorrected_gain, uncorrected_epsilon, constant_read, unused_id_wins, draft_leaks,
        draft_constant_lost,
    ],
)  # fmt: skip
def test_a_planted_error_is_caught(spoil):
    small = small_pair()
    wide = widened(small, SHAPES)
    with torch.no_grad():
        spoil(*wide)
    found = check(small, wide, PROMPTS, new_tokens=20)
    assert max(found.logits, found.taps, found.draft_logits, found.unused) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 4}, "layers: 5 is more than 4"),
        ({"hidden_size": 32}, "one dimension more: 33 is more than 32"),
        ({"head_dim": 12}, "12 is no multiple of 8"),
        ({"heads": 2, "kv_heads": 2}, "need 4 of 2"),
        ({"draft_vocabulary": 100}, "100 is more than 64"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        widened(small_pair(), replace(SHAPES, **change))


def test_float16_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        widen(*small_pair(), SHAPES, device=DEVICE, dtype=torch.float16)


def test_bfloat16_costs_no_more_than_it_costs_the_small_pair():
    small = small_pair()
    wide = widen(*small, SHAPES, device=DEVICE, dtype=torch.bfloat16)
    assert wide.model.model.rotary_emb.inv_freq.dtype == wide.draft.inv_freq.dtype == torch.float32
    found = check(small, (wide.model, wide.draft), PROMPTS, new_tokens=20)
    rounded = check(small, tuple(part.to(torch.bfloat16) for part in small_pair()), PROMPTS, new_tokens=20)
    assert rounded.logits > 1e-3
    assert found.logits < 3 * rounded.logits
    assert found.unused == 0.0


@pytest.mark.slow
def test_the_embedded_pair_widens():
    """A trained pair of another head ratio and half the head dimension, on its way to Vicuna's shapes."""
    assets = Path(radar.__file__).parent / "assets"
    model = load_model(str(assets / "target"), device=DEVICE, dtype=torch.float32, progress=False)
    draft = load_draft(
        assets / "draft", target_hidden_size=model.config.hidden_size, device=DEVICE, dtype=torch.float32
    )
    geometry = Geometry(
        name="half", layers=10, hidden_size=640, intermediate_size=1024, heads=8, kv_heads=8, head_dim=128,
        vocabulary=6000, draft_vocabulary=5000,
    )  # fmt: skip
    wide = widened((model, draft), geometry)
    prompts = [[0, 100, 200, 300], [0, 1, 50, 60, 2]]
    found = check((model, draft), wide, prompts, new_tokens=48)
    assert found.equal_texts == 2
    assert max(found.logits, found.taps, found.draft_logits) < 1e-4
    options = {"tree": TreeConfig(total_tokens=32), "max_length": 128, "fallback": False}
    options["policy"] = Threshold()
    runs = [
        RadarDecoder(m, draft=d, **options).generate(prompts[0], max_new_tokens=64) for m, d in ((model, draft), wide)
    ]
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].metrics.stop_histogram == runs[1].metrics.stop_histogram
    plain = AutoregressiveDecoder(wide[0], max_length=128)
    assert plain.generate(prompts[0], max_new_tokens=64).token_ids == runs[0].token_ids
