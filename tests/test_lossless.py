"""The promise: the text is the target's own greedy text, whatever the policy, the tree or the draft head."""

import pytest
import torch
from fakes import FAMILIES, VOCAB, hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.draft.tree import DraftTree
from radar.target.cache import StaticKVCache

PROMPTS = [[1], [5, 3], [2, 7, 1, 8, 2, 8], [(i * i) % VOCAB for i in range(70)]]
LENGTH = 18


def decoder(model, draft, policy, **tree):
    return RadarDecoder(model, draft=draft, policy=policy, tree=TreeConfig(**tree), max_length=256, fallback=False)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("llama", "qwen3"))) for name in FAMILIES]
)
def test_every_depth_equals_generate(family):
    model = tiny_target(family)
    radar = decoder(model, tiny_draft(), FixedDepth(1))
    plain = AutoregressiveDecoder(model, max_length=256)
    accepted = 0
    for index, prompt in enumerate(PROMPTS):
        expected = hf_greedy(model, prompt, LENGTH)
        assert plain.generate(prompt, max_new_tokens=LENGTH).token_ids == expected
        for calls in range(1 + index, 17, 4):  # every depth once, over the prompts
            radar.policy = FixedDepth(calls)
            out = radar.generate(prompt, max_new_tokens=LENGTH)
            assert out.token_ids == expected, (prompt, calls)
            assert set(out.metrics.stop_histogram) == {calls}
            accepted += out.metrics.num_accepted_draft_tokens
    assert accepted > 45  # the drafts were right often enough to exercise acceptance and compaction


@pytest.mark.parametrize("total_tokens", [2, 3, 17, 60, 65, 200])
@pytest.mark.parametrize("tree_top_k", [1, 4, 10])
def test_every_tree_equals_generate(total_tokens, tree_top_k):
    model = tiny_target(seed=1)
    for policy, prompt in zip((FixedDepth(4), Threshold(0.3)), PROMPTS[1::2], strict=True):
        radar = decoder(
            model, tiny_draft(seed=1), policy, total_tokens=total_tokens, tree_top_k=tree_top_k, max_calls=9
        )
        assert radar.generate(prompt, max_new_tokens=LENGTH).token_ids == hf_greedy(model, prompt, LENGTH)


def test_full_draft_vocabulary():
    model = tiny_target(seed=2)
    radar = decoder(model, tiny_draft(seed=2, draft_vocab_size=VOCAB), FixedDepth(5))
    assert radar.generate(PROMPTS[2], max_new_tokens=LENGTH).token_ids == hf_greedy(model, PROMPTS[2], LENGTH)


def differs_somewhere():
    model = tiny_target()
    radar = decoder(model, tiny_draft(), FixedDepth(5))
    return any(
        radar.generate(prompt, max_new_tokens=LENGTH).token_ids != hf_greedy(model, prompt, LENGTH)
        for prompt in PROMPTS
    )


def test_planted_bugs_are_caught(monkeypatch):
    """The tests above can fail: a visible sibling, a wrong node committed, and a stale draft each change the text or
    nothing at all, as they should."""
    assert not differs_somewhere()

    select = DraftTree.select

    def show_a_sibling(self, root_token, counts=None):
        nodes = select(self, root_token, counts)
        words = nodes.ancestors.clone()
        words[:, 2:, 0] |= 0b10  # node 1, a child of the root, becomes visible to everybody after it
        return nodes._replace(ancestors=torch.where(nodes.parents[..., None] == 0, words, nodes.ancestors))

    with monkeypatch.context() as patch:
        patch.setattr(DraftTree, "select", show_a_sibling)
        assert differs_somewhere()

    commit = StaticKVCache.commit

    def keep_a_wrong_node(self, path, count):
        wrong = path.clone()
        wrong[:, 1] = torch.where(path[:, 1] > 0, path[:, 1] % 2 + 1, path[:, 1])
        commit(self, wrong, count)

    with monkeypatch.context() as patch:
        patch.setattr(StaticKVCache, "commit", keep_a_wrong_node)
        assert differs_somewhere()


def test_a_bad_draft_costs_speed_and_nothing_else():
    """Features of another position reach the head: acceptance may fall, the text may not change."""
    model = tiny_target(seed=3)
    draft = tiny_draft(seed=3)
    draft.fc.weight.data.normal_(0, 5)
    radar = decoder(model, draft, FixedDepth(6))
    assert radar.generate(PROMPTS[-1], max_new_tokens=LENGTH).token_ids == hf_greedy(model, PROMPTS[-1], LENGTH)
