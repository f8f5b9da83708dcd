"""Which heads fit which targets: draft ids in any order, vocabularies padded differently, lengths that YaRN makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from draft_layouts import CPU, head, load, modelopt, same, write
from fakes import DEVICE, VOCAB, hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.draft.checkpoint import load_draft, save_draft
from radar.draft.covering import covering
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.scaling import RopeScaling
from radar.target.positions import position_limit

PROMPT = [3, 1, 4, 1, 5]
LENGTH = 40


def decoder(model, draft, **options):
    tree = TreeConfig(total_tokens=20, tree_top_k=4, max_calls=4)
    return RadarDecoder(model, draft=draft, policy=FixedDepth(4), tree=tree, max_length=128, fallback=False, **options)


def text_and_rounds(model, draft):
    radar = decoder(model, draft)
    result = radar.generate(PROMPT, max_new_tokens=LENGTH)
    return result.token_ids, result.metrics.mean_acceptance_length


def shuffled(draft: Eagle3Draft) -> Eagle3Draft:
    """The same head with its draft ids in another order."""
    order = torch.randperm(draft.config.draft_vocab_size, generator=torch.Generator().manual_seed(1))
    twin = Eagle3Draft(draft.config).to(draft.fc.weight).eval().requires_grad_(False)
    twin.load_state_dict(draft.state_dict())
    twin.lm_head.weight.copy_(draft.lm_head.weight[order])
    twin.set_draft_vocabulary(draft.target_ids()[order])
    return twin


@pytest.mark.parametrize("size", [13, VOCAB], ids=["reduced", "whole"])
def test_the_order_of_the_draft_ids_changes_nothing(size):
    """Also where the vocabulary is the whole one: then the map is a permutation, and cannot be left out."""
    model, draft = tiny_target(), tiny_draft(draft_vocab_size=size)
    other = shuffled(draft)
    assert bool((other.target_ids().diff() < 0).any())
    assert torch.equal(other.t2d, draft.t2d)
    expected = text_and_rounds(model, draft)
    assert expected[1] > 1.2, "the head is never right: nothing was compared"
    assert text_and_rounds(model, other) == expected
    assert expected[0] == hf_greedy(model, PROMPT, LENGTH)


@pytest.mark.parametrize("layout", ["safeailab", "speculators"])
def test_draft_ids_in_order_of_frequency_load_exactly(tmp_path, layout):
    draft = shuffled(head())
    save_draft(draft, tmp_path, dtype=torch.float32, layout=layout)
    found = load_draft(tmp_path, target_hidden_size=32, device=CPU, dtype=torch.float32)
    assert same(found, draft)


def test_what_calibration_writes_is_read_as_offsets(tmp_path):
    """ModelOpt writes d2t alone, as target id minus draft id, the most frequent token first."""
    draft = shuffled(head(attention_bias=True, mlp_bias=True, norm_before_fc=True, norm_output=True,
                          eagle_aux_hidden_state_layer_ids=(2, 3, 4)))  # fmt: skip
    found, report = load(write(tmp_path, *modelopt(draft)))
    assert same(found, draft)
    assert any("not in the order of the target's" in sentence for sentence in report.assumed)


def test_two_draft_ids_for_one_token_are_refused():
    draft = tiny_draft()
    ids = draft.target_ids()
    for wrong in (ids.index_fill(0, torch.tensor(0, device=DEVICE), int(ids[1])), ids - 5, ids + 9, ids[:-1]):
        with pytest.raises(ValueError, match=r"must be 13 different ids from 0 to 16"):
            draft.set_draft_vocabulary(wrong)


def padded(draft: Eagle3Draft, vocab_size: int) -> Eagle3Draft:
    """The same head, made for another padding of the vocabulary."""
    twin = Eagle3Draft(replace(draft.config, vocab_size=vocab_size)).to(draft.fc.weight).eval().requires_grad_(False)
    weights = {name: tensor for name, tensor in draft.state_dict().items() if name not in ("d2t", "t2d")}
    if draft.embed_tokens is not None:
        rows = weights["embed_tokens.weight"]
        extra = torch.zeros(max(vocab_size - len(rows), 0), rows.shape[1]).to(rows)
        weights["embed_tokens.weight"] = torch.cat((rows, extra))[:vocab_size]
    twin.load_state_dict(weights, strict=False)
    twin.set_draft_vocabulary(draft.target_ids())
    return twin


def low(draft: Eagle3Draft) -> Eagle3Draft:
    draft.set_draft_vocabulary(torch.arange(13))
    return draft


@pytest.mark.parametrize("size", [14, 23], ids=["less", "more"])
def test_padding_of_the_vocabulary_does_not_matter_where_every_draft_id_fits(size):
    model, draft = tiny_target(), low(tiny_draft())
    expected = text_and_rounds(model, draft)
    assert expected[1] > 1.2, "the head is never right: nothing was compared"
    assert text_and_rounds(model, padded(draft, size)) == expected


def test_draft_ids_that_the_target_does_not_know_are_refused_by_name():
    draft = padded(tiny_draft(), 23)
    draft.set_draft_vocabulary(torch.arange(10, 23))
    with pytest.raises(ValueError, match="it proposes ids up to 22, the target's vocabulary ends at 16"):
        decoder(tiny_target(), draft)


def test_an_embedding_of_its_own_may_end_before_the_targets_ids():
    """What it has no row for is padding: rows in its place change no text, and no round of a text without padding."""
    draft, model = low(head(own_embedding=True)).to(DEVICE), tiny_target(vocab_size=23)
    with torch.no_grad():
        model.lm_head.weight[17:] = 0.0  # logits of 0, which are never the highest
    expected = text_and_rounds(model, padded(draft, 23))
    assert expected[1] > 1.2, "the head is never right: nothing was compared"
    assert text_and_rounds(model, draft) == expected
    assert expected[0] == hf_greedy(model, PROMPT, LENGTH)
    embedding, ids = draft.embed_tokens, torch.arange(23, device=DEVICE)
    assert torch.equal(covering(embedding, model.get_input_embeddings())(ids), embedding(ids.clamp(max=16)))
    assert covering(embedding, tiny_target().get_input_embeddings()) is embedding
    prompt = [3, 22, 5]
    assert decoder(model, draft).generate(prompt, max_new_tokens=8).token_ids == hf_greedy(model, prompt, 8)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("parameters", "stated", "limit"),
    [
        (YARN, 100, 256),
        (YARN, 512, 512),
        ({**YARN, "original_max_position_embeddings": None}, 100, 400),
        ({**YARN, "factor": None}, 100, 100),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 100, 100),
        ({"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}, 100, 100),
        ({"full_attention": YARN, "other": {**YARN, "factor": 3.0}}, 100, 192),
        (None, 100, 100),
        (YARN, None, None),
    ],
)
def test_positions_that_a_model_was_made_for(parameters, stated, limit):
    class Config:
        rope_parameters = parameters
        max_position_embeddings = stated

    assert position_limit(Config()) == limit


def test_yarn_takes_a_text_beyond_max_position_embeddings(tmp_path):
    """The stock model's text goes on behind the length from before YaRN was switched on, and so does ours; the head's
    own YaRN sets no limit."""
    model = tiny_target(rope_parameters=dict(YARN), max_position_embeddings=80)
    scaling = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    draft = Eagle3Draft(replace(tiny_draft().config, rope_scaling=scaling)).to(DEVICE).eval().requires_grad_(False)
    save_draft(draft, tmp_path, dtype=torch.float32)
    radar = decoder(model, load_draft(tmp_path, target_hidden_size=32, device=DEVICE, dtype=torch.float32))
    assert radar.generate(PROMPT, max_new_tokens=110).token_ids == hf_greedy(model, PROMPT, 110)
    with pytest.raises(ValueError, match="max_length 300 is more than the 256 positions"):
        RadarDecoder(model, draft=draft, max_length=300)
