"""How many nodes each method verifies, against development rounds and costs that are worked out in plain Python."""

import math

import pytest
import torch
from rounds_files import store

from bench.lab import fit
from bench.lab.policies import RADAR, THRESHOLD, choose_policies
from bench.lab.sets import files_of
from radar.config import TreeConfig
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable

NODES, CALLS, CALL, REST = (32, 60, 100), 8, 0.2, 0.5
DEPTHS = {"chat": [3, 8, 4, 7, 3, 8], "gsm8k": [1, 5, 2, 8], "mbpp": [6, 7, 8]}  # by kind: where each round's path dies
LOST = {"chat": (2, 1, 0), "gsm8k": (0, 0, 0), "mbpp": (3, 1, 0)}  # levels by which a tree of NODES falls short of it
NEAREST = {"mt_bench": "chat", "gsm8k": "gsm8k", "alpaca": "chat", "mbpp": "mbpp"}
AT_CLIFF, AT_ONCE = 3.0, 0.0  # bounds of a network that stops where the best score is below -bound


def scores_of(depth):
    """They fall slowly while the path lives, and off a cliff after it."""
    return [[-0.2 * n - 3.0 * (n > depth) - below for below in (0.0, 1.0)] for n in range(1, CALLS + 1)]


def accepted(kind, depth, nodes, calls):
    return min(calls, max(depth - LOST[kind][NODES.index(nodes)], 0))


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    sets = ["train", *(f"develop-{kind}" for kind in DEPTHS)]
    files = [(name, *one) for name in sets for one in files_of(folder, name, 1.0, "0-of-1").items()]
    for name, nodes, file in files:
        kind = "chat" if name == "train" else name.removeprefix("develop-")
        header = RoundsHeader(TreeConfig(tree_top_k=2, max_calls=CALLS, total_tokens=nodes), 1.0)
        depths = DEPTHS[kind]
        lengths = torch.tensor([[accepted(kind, d, nodes, calls) for calls in range(1, CALLS + 1)] for d in depths])
        numbers = torch.arange(len(depths))
        scores = torch.tensor([scores_of(depth) for depth in depths])
        store(file, RoundDataset(scores, lengths, numbers, torch.full_like(numbers, 9), header), range(len(depths)))
    return folder


def network(folder, bound):
    """Stands for a trained one: its logits of (stop, continue) are (-best score, bound)."""
    net = PolicyNetwork(2, 4, mlp_size=4)
    net.load_state_dict({name: torch.zeros_like(value) for name, value in net.state_dict().items()})
    net.mlp[0].weight.data[0, 4] = -1.0  # its inputs are the four hidden values, then the scores
    net.mlp[3].weight.data[0, 0] = 1.0
    net.mlp[3].bias.data[1] = bound
    save_policy(net, folder)


def speed(kinds, nodes, verify, stop, decision):
    """Tokens per time of the rounds of some kinds, where `stop(levels so far)` ends a round."""
    tokens, time = 0, 0.0
    for kind in kinds:
        for depth in DEPTHS[kind]:
            levels = scores_of(depth)
            calls = next((n for n in range(1, CALLS) if stop(levels[:n])), CALLS)
            tokens += accepted(kind, depth, nodes, calls) + 1
            time += CALL * calls + decision * min(calls, CALLS - 1) + verify[NODES.index(nodes)] + REST
    return tokens / time


def by_hand(verify, bound, decision):
    """The best (calls, nodes) by task, (threshold, nodes), and nodes of the network."""
    grid = [(calls, nodes) for nodes in NODES for calls in range(1, CALLS + 1)]
    fixed = {
        task: max(grid, key=lambda one: speed([kind], one[1], verify, lambda levels: len(levels) == one[0], 0.0))
        for task, kind in NEAREST.items()
    }

    def over_tasks(nodes, stop):
        return math.prod(speed([kind], nodes, verify, stop, decision) for kind in NEAREST.values())

    masses = {
        (i / 50, nodes): over_tasks(nodes, lambda levels, i=i: sum(map(math.exp, levels[-1])) < i / 50)
        for nodes in NODES
        for i in range(1, 50)
    }
    learned = {nodes: over_tasks(nodes, lambda levels: levels[-1][0] < -bound) for nodes in NODES}
    return fixed, max(masses, key=masses.get), max(learned, key=learned.get)


@pytest.mark.parametrize(
    ("verify", "bound", "threshold", "radar", "fixed", "decision"),
    [
        pytest.param((1.0, 6.0, 14.0), AT_CLIFF, 32, 32, (32, 32, 32), 0.02, id="steep"),
        pytest.param((1.0, 1.01, 1.02), AT_CLIFF, 100, 100, (100, 32, 100), 0.02, id="flat"),
        pytest.param((1.0, 1.01, 14.0), AT_CLIFF, 60, 60, (60, 32, 60), 0.02, id="flat, then steep"),
        pytest.param((1.0, 1.5, 2.0), AT_CLIFF, 32, 60, (32, 32, 60), 0.02, id="methods differ"),
        pytest.param((1.0, 1.15, 1.3), AT_ONCE, 100, 32, (100, 32, 100), 0.02, id="a network that stops at once"),
        pytest.param((1.0, 1.5, 2.0), AT_CLIFF, 100, 100, (32, 32, 60), 0.5, id="dear decisions"),
    ],
)
def test_nodes_follow_the_costs(rounds, tmp_path, monkeypatch, verify, bound, threshold, radar, fixed, decision):
    monkeypatch.setattr(fit, "_train", lambda _, __, out, *___: network(out, bound if out.name == RADAR else AT_ONCE))
    costs = CostTable(
        draft_call_seconds=(CALL,) * CALLS, nodes=NODES, contexts=(0,), verify_seconds=tuple((one,) for one in verify),
        decision_seconds=decision, rest_seconds=REST, device="any", pair="any",
    )  # fmt: skip
    choice = choose_policies(rounds, costs, tmp_path, temperature=1.0, epochs=1)
    assert choice.nodes == {THRESHOLD: threshold, RADAR: radar}
    assert tuple(choice.fixed[task][1] for task in ("mt_bench", "gsm8k", "mbpp")) == fixed
    assert (choice.fixed, (choice.threshold, threshold), radar) == by_hand(verify, bound, decision)
