"""Random trees, and the walk that accepts them."""

import torch

from radar_kernels import Acceptance, accept_nodes
from radar_kernels.reference_tree import VerifyTree


def acceptance(batch: int, max_accepted: int, device) -> Acceptance:
    """Buffers that an earlier round left."""
    shapes = dict.fromkeys(("path", "tokens"), (batch, max_accepted)) | {"result": (batch, 3 + max_accepted)}
    made = [torch.full(shapes.get(name, (batch,)), -7, device=device) for name in Acceptance._fields]
    return Acceptance(*made)


def accept(tree: VerifyTree, target_tokens, max_accepted: int) -> Acceptance:
    """As a round does it."""
    return accept_in(tree.draft_tokens, tree.parents, tree.valid, target_tokens, max_accepted=max_accepted)


def accept_in(draft_tokens, parents, valid, target_tokens, *, max_accepted, seen=None, **options) -> Acceptance:
    """Of calls that are 5 in every row."""
    batch, device = len(target_tokens), target_tokens.device
    into = acceptance(batch, max_accepted, device)
    seen = torch.zeros(batch, 64, dtype=torch.int32, device=device) if seen is None else seen
    calls = torch.full((batch,), 5, device=device)
    accept_nodes(draft_tokens, parents, valid, target_tokens, calls, into, seen, **options)
    drafted = valid[:, 1:].sum(1)
    assert into.result.tolist() == torch.column_stack((calls, drafted, into.accept_length, into.tokens)).tolist()
    return into


def random_tree(rng, nodes, vocab, max_depth):
    parents, tokens, depths = [0], [rng.randrange(vocab)], [0]
    children = {0: set()}
    while len(parents) < nodes:
        parent = rng.choice([i for i in range(len(parents)) if depths[i] < max_depth and len(children[i]) < vocab - 1])
        token = rng.choice([t for t in range(vocab) if t not in children[parent]])
        children[parent].add(token)
        children[len(parents)] = set()
        parents.append(parent), tokens.append(token), depths.append(depths[parent] + 1)
    order = sorted(range(nodes), key=lambda i: depths[i])
    place = {node: i for i, node in enumerate(order)}
    parents = [place[parents[i]] for i in order]
    reach = [[False] * nodes for _ in range(nodes)]
    for i, parent in enumerate(parents):
        reach[i] = [a or b for a, b in zip(reach[i], reach[parent], strict=True)]
        reach[i][i] = True
    return [tokens[i] for i in order], parents, [depths[i] for i in order], reach
