"""Rounds drafted to the end: the target's probability of every candidate, and beams wider than a word has bits."""

import itertools

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target
from test_record import PROMPTS, make

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.train.drafted import FullRounds


@pytest.mark.parametrize("tree", [{"total_tokens": 8, "max_calls": 3}, {"total_tokens": 30, "max_calls": 16}])
def test_every_candidate_has_the_targets_probability(tree):
    """From the model itself: a causal pass over the path of every beam node. 46 rows, and 3 levels of 3."""
    decoder, text = make(**tree), []
    for item in itertools.islice(FullRounds(decoder, 0.8).of(PROMPTS[0], 30, seed=3), 4):
        if item.tree is not None:
            tokens, parents = item.tree.tokens[0].tolist(), item.tree.parents[0].tolist()
            expected = torch.zeros_like(item.probabilities[0])
            for beam in set(parents):
                path, up = [], beam
                while up >= 0:
                    path.insert(0, tokens[up])
                    up = parents[up]
                ids = torch.tensor([PROMPTS[0] + text + path], device=DEVICE)
                with torch.no_grad():
                    share = (decoder.model(ids).logits[0, -1].double() / 0.8).softmax(-1)
                for slot, parent in enumerate(parents):
                    if parent == beam:
                        expected[slot] = share[tokens[slot]]
            torch.testing.assert_close(item.probabilities[0], expected, atol=1e-4, rtol=1e-3)
        text += item.tokens


@pytest.mark.parametrize(("k", "calls"), [(10, 8), (8, 9)])
def test_a_beam_of_more_rows_than_a_word_has_bits(k, calls):
    """71 rows, whose ancestors cross from one word to the next; and 65, which need a word more than the beams do."""
    tree = TreeConfig(total_tokens=60, tree_top_k=k, max_calls=calls)
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(8), tree=tree, max_length=160, engine="eager"
    )
    rounds = FullRounds(decoder, 0.0)
    text = [token for item in rounds.of(PROMPTS[0], 40, seed=0) for token in item.tokens]
    assert text == decoder.generate(PROMPTS[0], max_new_tokens=40).token_ids
    nodes = rounds.round.nodes
    seen = nodes.ancestors[0].tolist()
    for node, up in enumerate(nodes.parents[0].tolist()):
        own = {node} | ({c for c in range(128) if seen[up][c // 64] >> c % 64 & 1} if node else set())
        assert {c for c in range(128) if seen[node][c // 64] >> c % 64 & 1} == own
