"""Rounds drafted to the end: the target's probability of every candidate, and beams wider than a word has bits."""

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target
from test_record import PROMPTS, make

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.replay.full_round import FullRounds


@pytest.mark.parametrize("tree", [{"total_tokens": 8, "max_calls": 3}, {"total_tokens": 30, "max_calls": 16}])
def test_every_candidate_has_the_targets_probability(tree):
    """From the model itself: a causal pass over the path of every beam node. 46 rows, and 3 levels of 3."""
    decoder = make(**tree)
    text = FullRounds(decoder, 0.8).text(PROMPTS[0], 30, seed=3)
    for row, start in enumerate(text.starts[:3]):
        tokens, parents = text.tree.tokens[row].tolist(), text.tree.parents[row].tolist()
        expected = torch.zeros_like(text.probabilities[row])
        for beam in set(parents):
            path, up = [], beam
            while up >= 0:
                path.insert(0, tokens[up])
                up = parents[up]
            ids = torch.tensor([PROMPTS[0] + text.tokens[:start] + path], device=DEVICE)
            with torch.no_grad():
                share = (decoder.model(ids).logits[0, -1].double() / 0.8).softmax(-1)
            for slot, parent in enumerate(parents):
                if parent == beam:
                    expected[slot] = share[tokens[slot]]
        torch.testing.assert_close(text.probabilities[row], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("k", "calls"), [(10, 8), (8, 9)])
def test_a_beam_of_more_rows_than_a_word_has_bits(k, calls):
    """71 rows, whose ancestors cross from one word to the next; and 65, which need a word more than the beams do."""
    tree = TreeConfig(total_tokens=60, tree_top_k=k, max_calls=calls)
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(8), tree=tree, max_length=160, engine="eager"
    )
    rounds = FullRounds(decoder, 0.0)
    text = rounds.text(PROMPTS[0], 40, seed=0).tokens
    assert text == decoder.generate(PROMPTS[0], max_new_tokens=40).token_ids
    nodes = rounds.round.nodes
    seen = nodes.ancestors[0].tolist()
    for node, up in enumerate(nodes.parents[0].tolist()):
        own = {node} | ({c for c in range(128) if seen[up][c // 64] >> c % 64 & 1} if node else set())
        assert {c for c in range(128) if seen[node][c // 64] >> c % 64 & 1} == own
