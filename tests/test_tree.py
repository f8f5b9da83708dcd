"""Growing and selecting draft trees, against a plain Python tree."""

import random

import pytest
import torch

from radar.config import TreeConfig
from radar.draft.tree import DraftTree
from radar.target.attention import causal_ancestors
from radar_kernels.reference_tree import pack_bits

VOCAB = 31


def unpack(words, columns):
    return [[(int(row[c // 64]) >> (c % 64)) & 1 for c in range(columns)] for row in words]


class PlainTree:
    """The same tree with lists and dictionaries. A node is the tuple of tokens on its path."""

    def __init__(self, k):
        self.k, self.scores, self.beam, self.order = k, {}, [()], {}

    def grow(self, log_probs):
        """log_probs: one row of the vocabulary for each beam node, in beam order."""
        level = []
        for path, row in zip(self.beam, log_probs, strict=True):
            base = self.scores.get(path, 0.0)
            best = sorted(range(len(row)), key=lambda token: -row[token])[: self.k]
            level += [(base + row[token], (*path, token)) for token in best]
        for score, path in level:
            self.scores[path] = score
            self.order[path] = len(self.order)
        self.beam = [path for _, path in sorted(level, key=lambda item: -item[0])[: self.k]]

    def select(self, count):
        best = sorted(self.scores, key=lambda path: (-self.scores[path], self.order[path]))[:count]
        return sorted(best, key=lambda path: self.order[path])


def grown(config, calls, seed=0, batch=1):
    """A DraftTree and its plain twins, one for each row of the batch."""
    generator = torch.Generator().manual_seed(seed)
    tree = DraftTree(batch, config, torch.device("cpu"))
    plain = [PlainTree(config.tree_top_k) for _ in range(batch)]
    for call in range(calls):
        rows = 1 if call == 0 else config.tree_top_k
        logits = 2 * torch.randn(batch, rows, VOCAB, generator=generator)
        (tree.start if call == 0 else tree.grow)(logits)
        for row, twin in enumerate(plain):
            twin.grow(logits[row].log_softmax(-1).tolist())
    return tree, plain


@pytest.mark.parametrize(
    ("calls", "total", "k"), [(1, 60, 10), (2, 60, 10), (5, 60, 10), (16, 60, 10), (7, 9, 3), (4, 2, 2)]
)
def test_selection_equals_a_plain_tree(calls, total, k):
    config = TreeConfig(total_tokens=total, tree_top_k=k, max_calls=16)
    tree, plain = grown(config, calls, seed=calls, batch=2)
    assert tree.calls.tolist() == [calls, calls]
    nodes = tree.select(torch.tensor([5, 6]))
    for row, twin in enumerate(plain):
        chosen = twin.select(total - 1)
        count = len(chosen) + 1
        index = {(): 0} | {path: i + 1 for i, path in enumerate(chosen)}
        assert nodes.draft_tokens[row, :count].tolist() == [5 + row] + [path[-1] for path in chosen]
        assert nodes.parents[row, :count].tolist() == [0] + [index[path[:-1]] for path in chosen]
        assert nodes.depths[row, :count].tolist() == [0] + [len(path) for path in chosen]
        assert nodes.valid[row].tolist() == [True] * count + [False] * (nodes.valid.shape[1] - count)
        seen = unpack(nodes.ancestors[row, :count], nodes.valid.shape[1])
        for path, bits in zip([(), *chosen], seen, strict=True):
            expected = {index[path[:depth]] for depth in range(len(path) + 1)}
            assert {c for c, bit in enumerate(bits) if bit} == expected


def test_beam_columns_are_those_of_the_ancestors():
    config = TreeConfig(tree_top_k=3, max_calls=5)
    tree, (twin,) = grown(config, 1)
    levels = [list(twin.beam)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        logits = torch.randn(1, 3, VOCAB, generator=generator)
        tree.grow(logits)
        twin.grow(logits[0].log_softmax(-1).tolist())
        levels.append(list(twin.beam))
        bits = unpack(tree.beam_ancestors[0], config.num_draft_columns)
        for i, path in enumerate(twin.beam):
            own = [] if len(levels) == 5 else [(len(levels) - 1) * 3 + i]  # the last level is never expanded
            above = [(d - 1) * 3 + levels[d - 1].index(path[:d]) for d in range(1, len(path))]
            assert {c for c, bit in enumerate(bits[i]) if bit} == set(own + above)


def test_certain_tokens_keep_parents_before_children():
    """Probability one makes a child score what its parent scores; the parent must still come along."""
    config = TreeConfig(total_tokens=4, tree_top_k=2, max_calls=6)
    tree = DraftTree(1, config, torch.device("cpu"))
    certain = torch.full((1, 1, VOCAB), -1e9)
    certain[..., 7] = 0.0
    tree.start(certain)
    for _ in range(5):
        tree.grow(certain.expand(1, 2, VOCAB))
    nodes = tree.select(torch.tensor([0]))
    assert nodes.parents[0].tolist() == [0, 0, 1, 2]
    assert nodes.draft_tokens[0, 1:].tolist() == [7, 7, 7]


def test_a_new_round_forgets_the_last_one():
    config = TreeConfig(total_tokens=30, tree_top_k=4, max_calls=8)
    tree, _ = grown(config, 8)
    fresh, _ = grown(config, 1, seed=3)
    generator = torch.Generator().manual_seed(3)
    tree.start(2 * torch.randn(1, 1, VOCAB, generator=generator))
    for mine, theirs in zip(tree.select(torch.tensor([1])), fresh.select(torch.tensor([1])), strict=True):
        assert torch.equal(mine, theirs)


def test_the_beam_knows_the_rows_that_it_comes_from():
    tree, (twin,) = grown(TreeConfig(tree_top_k=3, max_calls=4), 2)
    logits, before = torch.randn(1, 3, VOCAB), list(twin.beam)
    tree.grow(logits)
    twin.grow(logits[0].log_softmax(-1).tolist())
    assert tree.beam_parents[0].tolist() == [before.index(path[:-1]) for path in twin.beam]


def test_pack_bits_uses_every_bit_including_the_sign():
    rng = random.Random(0)
    flags = torch.tensor([[rng.random() < 0.5 for _ in range(130)] for _ in range(5)])
    flags[0, 63] = True
    words = pack_bits(flags)
    assert words.shape == (5, 3)
    assert unpack(words, 130) == flags.int().tolist()


def test_causal_ancestors_of_more_than_one_word():
    assert unpack(causal_ancestors(70, torch.device("cpu"))[0], 70) == torch.ones(70, 70).tril().int().tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("total_tokens", 0), ("total_tokens", 1), ("total_tokens", 257), ("tree_top_k", 0), ("max_calls", 17)],
)
def test_config_names_the_value_and_the_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be an integer from .* got {value}"):
        TreeConfig(**{name: value})
