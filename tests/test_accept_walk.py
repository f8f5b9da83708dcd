"""The acceptance walk, against a walk in plain Python."""

import random

import torch
from trees import accept, random_tree

from radar.draft.tree import VerifyTree
from radar_kernels.reference_tree import pack_bits


def plain_walk(tokens, parents, valid, target):
    path = [0]
    while True:
        node = next(
            (i for i in range(1, len(tokens)) if valid[i] and parents[i] == path[-1] and tokens[i] == target[path[-1]]),
            None,
        )
        if node is None:
            return path
        path.append(node)


def test_accept_equals_a_plain_walk():
    rng = random.Random(0)
    lengths = set()
    for trial in range(200):
        nodes, vocab = rng.choice([1, 2, 7, 60, 70]), rng.choice([3, 4, 6])
        tokens, parents, depths, reach = random_tree(rng, nodes, vocab, 8)
        target = [rng.randrange(vocab) for _ in range(nodes)]
        valid = [i == 0 or rng.random() < 0.9 for i in range(nodes)]
        for i in range(1, nodes):
            valid[i] = valid[i] and valid[parents[i]]
        tree = VerifyTree(
            torch.tensor([tokens]),
            torch.tensor([parents]),
            torch.tensor([depths]),
            torch.tensor([valid]),
            pack_bits(torch.tensor([reach])),
        )
        result = accept(tree, torch.tensor([target]), 9)
        path = plain_walk(tokens, parents, valid, target)
        length = len(path) - 1
        lengths.add(length)
        assert result.accept_length.tolist() == [length], trial
        assert result.path[0].tolist() == path + [0] * (9 - len(path))
        assert result.tokens[0, : length + 1].tolist() == [target[i] for i in path]
        assert result.next_token.tolist() == [target[path[-1]]]
    assert {0, 1, 2, 3} <= lengths  # the trees were worth walking


def test_padding_is_never_accepted():
    """A padding node holds token 0 under the root; the target choosing token 0 must not accept it."""
    tree = VerifyTree(
        torch.tensor([[4, 0, 0]]),
        torch.tensor([[0, 0, 0]]),
        torch.tensor([[0, 1, 1]]),
        torch.tensor([[True, False, False]]),
        torch.tensor([[[1], [3], [5]]]),
    )
    result = accept(tree, torch.tensor([[0, 0, 0]]), 17)
    assert result.accept_length.tolist() == [0]
    assert result.next_token.tolist() == [0]
