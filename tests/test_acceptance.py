"""What a tree would have had accepted, in distribution: against enumeration and against drawing."""

import itertools

import pytest
import torch
from trees import accept

from radar import TreeConfig
from radar.draft.tree import DraftTree
from radar.replay.acceptance import Candidates, Text, accept_lengths, acceptance_distribution, path_slots, verified
from radar.replay.rounds import RoundsHeader


def truncated(tree, calls):
    """The tree as it was after `calls` calls."""
    k = tree.config.tree_top_k
    early = tree.snapshot()
    early.scores[:, k + (calls - 1) * k * k :] = -torch.inf
    return early


def random_tree(seed, total_tokens=9, k=2, calls=4):
    """Candidates with random scores that never rise, and random conditional probabilities of the target."""
    generator = torch.Generator().manual_seed(seed)
    tree = DraftTree(1, TreeConfig(total_tokens=total_tokens, tree_top_k=k, max_calls=calls), torch.device("cpu"))
    slots = tree.scores.shape[1]
    tree.scores[0, :k] = -torch.rand(k, generator=generator)
    tree.tokens[0] = torch.arange(slots) % k  # siblings differ
    beam = list(range(k))
    for level in range(1, calls):
        first = k + (level - 1) * k * k
        for child, parent in enumerate(slot for slot in beam for _ in range(k)):
            tree.parents[0, first + child] = parent
            tree.scores[0, first + child] = tree.scores[0, parent] - torch.rand(1, generator=generator)
        here = tree.scores[0, first : first + k * k]
        beam = [first + int(i) for i in here.topk(k).indices]
    probabilities = torch.zeros(slots, dtype=torch.float64)
    for parent in set(tree.parents[0].tolist()):
        children = (tree.parents[0] == parent).nonzero().flatten()
        draw = torch.rand(k + 1, generator=generator, dtype=torch.float64)  # the last share: no child at all
        probabilities[children] = (draw / draw.sum())[:k]
    return tree, probabilities


def distribution_of(tree, probabilities):
    """Of the only round, [calls, calls + 1]."""
    candidates = Candidates.of(tree)
    return acceptance_distribution(candidates, tree.config, verified(candidates, tree.config), probabilities[None])[0]


def walk_all(tree, probabilities, calls):
    """P(accepted length) by walking every branch of the nodes that `select` gives after `calls` calls."""
    early = truncated(tree, calls)
    nodes = early.select(torch.tensor([0]))
    count = int(nodes.valid.sum()) - 1
    slots = early.scores[0].sort(descending=True, stable=True).indices[:count].tolist()
    result = torch.zeros(tree.config.max_calls + 1, dtype=torch.float64)

    def walk(parent, depth, reached):
        children = [slot for slot in slots if int(tree.parents[0, slot]) == parent]
        result[depth] += reached * (1 - sum(float(probabilities[slot]) for slot in children))
        for slot in children:
            walk(slot, depth + 1, reached * float(probabilities[slot]))

    walk(-1, 0, 1.0)
    return result


@pytest.mark.parametrize(("seed", "total_tokens"), [*itertools.product(range(4), (2, 5, 9, 40))])
def test_distribution_equals_enumeration(seed, total_tokens):
    tree, probabilities = random_tree(seed, total_tokens)
    found = distribution_of(tree, probabilities)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))
    for calls in range(1, 5):
        torch.testing.assert_close(found[calls - 1], walk_all(tree, probabilities, calls))


def test_distribution_equals_monte_carlo():
    """Draw a token after every node, walk the tree with the decoder's own `accept`, count."""
    tree, probabilities = random_tree(1)
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    for calls in (2, 4):
        nodes = truncated(tree, calls).select(torch.tensor([0]))
        count = int(nodes.valid.sum()) - 1
        slots = truncated(tree, calls).scores[0].sort(descending=True, stable=True).indices[:count].sort().values
        rows = []
        for parent in [-1, *slots.tolist()]:
            children = {
                int(tree.tokens[0, s]): float(probabilities[s])
                for s in range(len(probabilities))
                if tree.parents[0, s] == parent
            }
            shares = torch.tensor([children.get(token, 0.0) for token in range(2)] + [1 - sum(children.values())])
            rows.append(torch.multinomial(shares, draws, replacement=True, generator=generator))
        tokens = torch.stack(rows, 1)  # [draws, 1 + count]; token 2 is no child
        tokens = torch.nn.functional.pad(tokens, (0, nodes.draft_tokens.shape[1] - tokens.shape[1]), value=2)
        many = type(nodes)(*(part.expand(draws, *part.shape[1:]) for part in nodes))
        lengths = accept(many, tokens, tree.config.max_accepted).accept_length
        seen = torch.bincount(lengths, minlength=5).double() / draws
        expected = distribution_of(tree, probabilities)[calls - 1]
        error = (expected * (1 - expected) / draws).sqrt().clamp(min=1e-9)
        assert ((seen - expected).abs() / error).max() < 5  # 10 comparisons: 6e-6 by chance


def test_rounds_side_by_side_are_rounds_alone():
    """Distribution and lengths of a stack, for two sizes of tree."""
    trees, shares = zip(*(random_tree(seed) for seed in range(6)), strict=True)
    rounds = [Candidates.of(tree) for tree in trees]
    generator = torch.Generator().manual_seed(3)
    texts = torch.randint(-1, 2, (6, 4), generator=generator)
    for nodes in (4, 9):
        config = TreeConfig(total_tokens=nodes, tree_top_k=2, max_calls=4)
        stack = Candidates(*map(torch.cat, zip(*rounds, strict=True)))
        chosen = verified(stack, config)
        spread = acceptance_distribution(stack, config, chosen, torch.stack(shares))
        lengths = accept_lengths(chosen, path_slots(stack, config, texts))
        for row, one in enumerate(rounds):
            alone = acceptance_distribution(one, config, chosen[row, None], shares[row][None])[0]
            torch.testing.assert_close(spread[row], alone)
            assert torch.equal(
                lengths[row], accept_lengths(verified(one, config), path_slots(one, config, texts[row, None]))[0]
            )
            for calls in range(1, 5):
                early = truncated(trees[row], calls)
                early.config = config
                nodes_of = early.select(torch.tensor([0]))
                assert int(chosen[row, calls - 1].sum()) == int(nodes_of.valid.sum()) - 1
            assert lengths[row].tolist() == [followed(trees[row], texts[row], kept) for kept in chosen[row]]
        assert len(set(lengths.flatten().tolist())) > 2
        assert any(0 in line for line in lengths.tolist())


def followed(tree, text, kept):
    """How far a text goes through the kept candidates, token by token."""
    parent, length = -1, 0
    for token in text.tolist():
        here = [
            slot
            for slot in range(len(kept))
            if kept[slot] and (int(tree.parents[0, slot]), int(tree.tokens[0, slot])) == (parent, token)
        ]
        if not here:
            break
        parent, length = here[0], length + 1
    return length


def test_an_end_token_is_nobodys_draft():
    """In distribution: as if no candidate that ends the text were there."""
    tree, shares = random_tree(2)
    for ends in (frozenset(), frozenset({1}), frozenset({0, 1})):
        text = Text(3, [0] * 6, ends, [1], Candidates.of(tree), shares[None].float())
        inside = shares.clone()
        inside[torch.isin(tree.tokens[0], torch.tensor(sorted(ends), dtype=torch.int64))] = 0.0
        header = RoundsHeader(tree.config, 1.0)
        found = text.rounds(0, header, torch.zeros(1)).distribution[0].double()
        for calls in range(1, 5):
            torch.testing.assert_close(found[calls - 1], walk_all(tree, inside, calls), atol=1e-6, rtol=1e-5)
