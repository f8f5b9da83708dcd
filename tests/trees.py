"""Random trees, and the walk that accepts them."""

from radar_kernels import Acceptance, accept_nodes
from radar_kernels.reference_tree import VerifyTree


def accept(tree: VerifyTree, target_tokens, max_accepted: int) -> Acceptance:
    """As a round does it."""
    return accept_nodes(tree.draft_tokens, tree.parents, tree.valid, target_tokens, max_accepted=max_accepted)


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
