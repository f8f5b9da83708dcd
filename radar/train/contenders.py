"""The policies of a comparison, fitted, tuned and trained on development rounds: EAGLE-3, and rules of the literature.

What these learn from rounds: SpecDec++'s head, LTD's policy, and what another call adds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.policy.baselines import DDD, ExpectedGain, OptTree, Talon
from radar.policy.baselines_heads import AcceptanceHead, LevelNetwork, LevelPolicy
from radar.policy.baselines_history import GammaTune
from radar.policy.by_mass import NodesByMass
from radar.replay.ends import Ends
from radar.replay.replay import Tuned, first_stop, replay_ends, tune, tune_fixed_depth
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.objectives import decision_entropy, exact_loss, ratio_returns

__all__ = [
    *("EAGLE3", "MASSES", "NODES_BY_MASS", "expected_gain", "fit_gain_curves", "isotonic"),
    *("train_acceptance_head", "train_level_policy", "tune_nodes_by_mass", "tuned_contenders"),
]

EAGLE3, NODES_BY_MASS = "EAGLE-3 (8 calls)", "threshold and nodes"
ACCEPTANCE_HIDDEN, LEVEL_HIDDEN = 64, 1024  # 1024: LTD's
REJECTED_WEIGHT = 6.0  # SpecDec++'s
MASSES = tuple(i / 50 for i in range(1, 50))  # that a threshold is tried with
FACTORS, NEAR = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0), 0.13  # on prices of nodes; how far the bound moves from the last
BATCH, LEARNING_RATE, ENTROPY = 256, 1e-3, 0.1


def tuned_contenders(
    train: RoundDataset, develop: RoundDataset, costs: CostTable, *, epochs: int = 80
) -> dict[str, Tuned]:
    """Fit on `train`, choose thresholds and epochs by replay on `develop`; the prompts of both are then used up.

    Rules keep their published form, and DDD its published schedule; what is tuned is their one threshold.

    Args:
        costs: of a round.
        epochs: of the heads, as many as RADAR's network gets: 10 can leave LTD's at "never stop".
    """
    most = train.header.tree.max_calls
    found = {EAGLE3: Tuned(FixedDepth(min(8, most))), "fixed depth": tune_fixed_depth(develop, costs)}

    def add(name: str, make: Callable[[float], StopPolicy], values: Sequence[float]) -> None:
        found[name] = tune(make, values, develop, costs)

    add("beam-mass threshold", Threshold, MASSES)
    if develop.header.nodes:
        found[NODES_BY_MASS] = tune_nodes_by_mass(develop, costs, found["beam-mass threshold"])
    curves = fit_gain_curves(train)
    add("expected extra token", lambda price: expected_gain(curves, price), [i / 100 for i in range(2, 62, 2)])
    add("DDD", DDD, [-i / 10 for i in range(41)])
    add("TALON", Talon, [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
    add("OPT-Tree", OptTree, [i / 50 for i in range(1, 51)])
    add("GammaTune", lambda rate: GammaTune(rate, low=min(4, most), calls=min(8, most)), [0.05, 0.1, 0.2, 0.3, 0.5])
    head = train_acceptance_head(train, epochs=epochs)
    bounds = [i / 50 for i in range(1, 50)] + [0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999]
    add("SpecDec++ head", lambda bound: AcceptanceHead(head, bound), bounds)
    found["LTD's MLP"] = Tuned(train_level_policy(train, develop, costs, epochs=epochs))
    return found


def tune_nodes_by_mass(dataset: RoundDataset, costs: CostTable, alone: Tuned | None = None) -> Tuned:
    """The threshold that also verifies as many nodes as the tree's mass says, and its bound; the threshold `alone`,
    tuned on these rounds, where there is nothing to choose, or where that is faster.

    A number of nodes costs what its verification takes beyond the fewest's, in tokens at the threshold's speed; the
    draft's probabilities are not the target's, so a factor on that is tuned too, in turn with the bound.
    """
    alone, tree = alone or tune(Threshold, MASSES, dataset, costs), dataset.header.tree
    nodes = costs.worth_choosing(dataset.header.nodes, tree)
    if len(nodes) < 2:
        return alone
    context, one = dataset.position.median()[None], torch.ones(1, dtype=torch.int64)
    seconds = [costs.round_seconds(one, context, replace(tree, total_tokens=n)).item() for n in nodes]
    rate = max(alone.curve.values())

    def policy(mass: float, factor: float) -> NodesByMass:
        return NodesByMass(Threshold(mass), nodes, [factor * rate * (taken - seconds[0]) for taken in seconds])

    mass, factor = alone.value or 0.0, 1.0
    for _ in range(2):
        best = tune(lambda value, mass=mass: policy(mass, value), FACTORS, dataset, costs)  # type: ignore[misc]
        factor = best.value or 1.0
        near = [value for value in MASSES if abs(value - mass) < NEAR]
        best = tune(lambda value, factor=factor: policy(value, factor), near, dataset, costs)  # type: ignore[misc]
        mass = best.value or mass
    return max(best, alone, key=lambda one: max(one.curve.values()))._replace(at_edge=False)


def fit_gain_curves(dataset: RoundDataset) -> list[tuple[Tensor, Tensor]]:
    """(mass, gain) for the decision after call 1 to T - 1, both ascending: from mass[i] up to mass[i + 1] of the beam's
    summed probability the next call adds gain[i] tokens. Isotonic regression over all rounds."""
    accept, mass = dataset.expected_accept(), dataset.scores.exp().sum(-1)
    curves = []
    for call in range(accept.shape[1] - 1):
        order = mass[:, call].sort().indices
        level = torch.tensor(isotonic((accept[:, call + 1] - accept[:, call])[order].double().tolist()))
        first = torch.cat((torch.ones(1, dtype=torch.bool), level[1:] > level[:-1]))
        curves.append((mass[order, call][first], level[first]))
    return curves


def expected_gain(curves: Sequence[tuple[Tensor, Tensor]], price: float) -> ExpectedGain:
    """The rule at a price in tokens per call: go on where the next one adds more."""
    bounds = []
    for mass, gain in curves:
        pays = int((gain <= price).sum())  # from this step on
        bounds.append(0.0 if pays == 0 else float(mass[pays]) if pays < len(mass) else float("inf"))
    return ExpectedGain(bounds)


def isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in squared distance (pool adjacent violators)."""
    blocks: list[list[float]] = []  # mean, count
    for value in values:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            left = blocks[-1]
            left[0] = (left[0] * left[1] + mean * count) / (left[1] + count)
            left[1] += count
    return [mean for mean, count in blocks for _ in range(int(count))]


def train_acceptance_head(dataset: RoundDataset, *, epochs: int = 80, seed: int = 0) -> LevelNetwork:
    """P(the target's path reaches this level | it reached the one above), from the levels where the outcome is known.

    A stop after call n shows whether the path reached level n: it did if n tokens were accepted.
    """
    scores, calls = dataset.scores, dataset.scores.shape[1]
    levels = torch.arange(1, calls + 1)
    reached = dataset.accept_lengths == levels  # [N, T]
    asked = torch.cat((torch.ones_like(reached[:, :1]), reached[:, :-1]), 1)  # the path was alive one level above
    call = levels.float().expand(len(scores), -1)
    network = _fresh(scores.shape[-1], ACCEPTANCE_HIDDEN, context=False, seed=seed)

    def loss(index: Tensor) -> Tensor:
        logits = network(scores[index], call[index], call[index])
        weight = asked[index].float() * torch.where(reached[index], 1.0, REJECTED_WEIGHT)
        label = reached[index].float()
        summed = nn.functional.binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
        return summed / weight.sum().clamp(min=1.0)

    for _ in _fit(network, loss, len(scores), epochs=epochs, seed=seed):
        pass
    return network


def train_level_policy(
    train: RoundDataset, develop: RoundDataset, costs: CostTable, *, epochs: int = 80, seed: int = 0
) -> LevelPolicy:
    """LTD's policy by the exact gradient of tokens - rate * time, of the epoch that is fastest on `develop`.

    The rate is the throughput reached so far, from the best fixed depth's on. A bonus for undecided actions falls to 0
    over the epochs: without it a fresh policy may never stop.
    """
    accept, times = train.expected_accept(), costs.times(train.header.tree, train.position)
    rate = max(tune_fixed_depth(train, costs).curve.values())
    network = _fresh(train.scores.shape[-1], LEVEL_HIDDEN, context=True, seed=seed)
    returns, bonus, best, kept = ratio_returns(accept, times, rate=rate), ENTROPY, 0.0, network

    def loss(index: Tensor) -> Tensor:
        stop = _logits(network, train.scores[index], train.position[index])
        logits = torch.stack((stop, torch.zeros_like(stop)), -1)
        return exact_loss(logits, returns[index]) - bonus * decision_entropy(logits)

    for epoch in _fit(network, loss, len(train), epochs=epochs, seed=seed):
        rate = max(rate, _speed(network, train, costs))
        if (speed := _speed(network, develop, costs)) > best:
            best, kept = speed, copy.deepcopy(network)
        returns, bonus = ratio_returns(accept, times, rate=rate), ENTROPY * (1 - (epoch + 1) / epochs)
    return LevelPolicy(kept)


def _logits(network: LevelNetwork, scores: Tensor, context: Tensor) -> Tensor:
    """Of the decisions after call 1 to T - 1, for scores [N, T, k] and context lengths [N]."""
    call = torch.arange(1.0, scores.shape[1]).expand(len(scores), -1)
    logits: Tensor = network(scores[:, :-1], call, context.float()[:, None].expand_as(call))
    return logits


@torch.no_grad()
def _speed(network: LevelNetwork, data: RoundDataset, costs: CostTable) -> float:
    """Tokens per time of `LevelPolicy`, for all rounds at once."""
    stops = first_stop(_logits(network, data.scores, data.position) > 0)
    return replay_ends(Ends(stops), data, costs).tokens_per_time


def _fresh(width: int, hidden: int, *, context: bool, seed: int) -> LevelNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LevelNetwork(width, hidden, context=context)


def _fit(
    network: nn.Module, loss_of: Callable[[Tensor], Tensor], rounds: int, *, epochs: int, seed: int
) -> Iterator[int]:
    """Adam under a cosine over the epochs, each of which is yielded; `loss_of` gets the indices of a batch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for index in torch.randperm(rounds, generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss_of(index).backward()
            optimizer.step()
        schedule.step()
        yield epoch
