"""Rules of the literature: decisions by hand, rows independent, fixed buffers, nothing asked of the host."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from test_no_host_sync import NoHostReads
from torch import Tensor

from radar.config import TreeConfig
from radar.policy.base import FixedDepth, RoundSignals, StopPolicy
from radar.policy.baselines import DDD, Capped, ExpectedGain, OptTree, Talon
from radar.policy.baselines_heads import AcceptanceHead, LevelNetwork, LevelPolicy
from radar.policy.baselines_history import GammaTune
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork

CPU = torch.device("cpu")
TREE = TreeConfig(total_tokens=10, tree_top_k=3, max_calls=6)


def make_scores(rounds: int, seed: int = 0) -> Tensor:
    """[rounds, 6, 3] cumulative log-probabilities: falling by the level, sorted in it."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(rounds, 6, 1, generator=generator) * torch.rand(rounds, 1, 1, generator=generator) * 2
    return -(steps.cumsum(1) + torch.rand(rounds, 6, 3, generator=generator).cumsum(-1)).contiguous()


def network(*, context: bool) -> LevelNetwork:
    torch.manual_seed(1)
    return LevelNetwork(3, 8, context=context)


POLICIES: dict[str, Callable[[], StopPolicy]] = {
    "capped": lambda: Capped(RadarPolicy(PolicyNetwork(3, 8), sample=True), 4),
    "expected gain": lambda: ExpectedGain([0.1, 0.2, 0.5]),
    "DDD": lambda: DDD(-0.5, checks=(2, 4), calls=5),
    "TALON": lambda: Talon(0.4),
    "OPT-Tree": lambda: OptTree(0.3),
    "GammaTune": lambda: GammaTune(0.5, calls=3, low=1, high=6),
    "SpecDec++": lambda: AcceptanceHead(network(context=False), 0.6),
    "LTD": lambda: LevelPolicy(network(context=True)),
}


def start(policy: StopPolicy, rows: int, tree: TreeConfig = TREE) -> RoundSignals:
    signals = RoundSignals(torch.full((rows,), -1), torch.arange(rows) * 700)
    if attach := getattr(policy, "attach", None):
        attach(signals)
    policy.bind(rows, tree, CPU)
    return signals


@torch.no_grad()
def decisions(policy: StopPolicy, scores: Tensor) -> Tensor:
    policy.reset()
    return torch.stack([policy.stop(scores[:, level].contiguous()) for level in range(scores.shape[1] - 1)], 1)


def stops(policy: StopPolicy, scores: Tensor) -> list[int]:
    """Draft calls of each row."""
    flags = torch.nn.functional.pad(decisions(policy, scores), (0, 1), value=True)
    return (flags.int().argmax(1) + 1).tolist()


@pytest.mark.parametrize("name", POLICIES)
def test_rounds_do_not_leak_and_ask_nothing(name: str) -> None:
    policy, scores = POLICIES[name](), make_scores(40)
    start(policy, 40)
    with NoHostReads():
        first = decisions(policy, scores)
    assert first.dtype == torch.bool
    if name != "capped":  # it draws anew every round
        assert torch.equal(decisions(policy, scores), first), "state of the last round is left over"
        single = POLICIES[name]()
        signals = start(single, 1)
        for row in range(0, 40, 7):
            signals.context_length.fill_(row * 700)
            assert torch.equal(decisions(single, scores[row : row + 1])[0], first[row]), "rows are not independent"
    if name not in ("GammaTune", "capped"):
        assert 0 < first.float().mean() < 1, "these scores decide nothing"


@pytest.mark.parametrize("name", POLICIES)
def test_state_lives_in_fixed_buffers(name: str) -> None:
    policy = POLICIES[name]()
    start(policy, 4)
    before = {key: value.data_ptr() for key, value in vars(policy).items() if isinstance(value, Tensor)}
    decisions(policy, make_scores(4))
    assert {key: value.data_ptr() for key, value in vars(policy).items() if isinstance(value, Tensor)} == before


def levels(*masses: float) -> Tensor:
    """One round whose beam has the given summed probability at each level, in equal thirds."""
    return torch.tensor([[[math.log(mass / 3)] * 3 for mass in masses]])


def test_capped() -> None:
    policy = Capped(FixedDepth(6), 4)
    start(policy, 1)
    assert stops(policy, make_scores(1)) == [4]
    with pytest.raises(ValueError, match="Capped: calls"):
        Capped(FixedDepth(6), 0)


def test_a_cap_shows_what_its_policy_draws_from():
    """A captured graph has to register it, and copies of one policy, as two engines make them, draw on their own."""
    policy = Capped(RadarPolicy(PolicyNetwork(3, 8), sample=True), 4)
    assert Capped(FixedDepth(6), 4).generator is None
    first, second = copy.copy(policy), copy.copy(policy)
    for one in (first, second):
        one.bind(1, TREE, CPU)
    assert isinstance(first.generator, torch.Generator)
    assert first.generator is first._bound.generator
    assert first.generator is not second.generator


def test_expected_gain_has_a_bound_for_every_call() -> None:
    policy = ExpectedGain([0.1, 0.5, 0.3])
    start(policy, 1)
    assert stops(policy, levels(0.2, 0.6, 0.35, 0.31, 0.29, 0.1)) == [5]  # the last bound holds on
    assert stops(policy, levels(0.2, 0.45, 0.3, 0.3, 0.3, 0.1)) == [2]
    assert stops(policy, levels(0.05, 0.6, 0.6, 0.6, 0.6, 0.6)) == [1]
    with pytest.raises(ValueError, match="mass_by_call"):
        ExpectedGain([0.1, float("nan")])


def test_ddd_asks_only_at_its_checks() -> None:
    policy = DDD(math.log(0.5), checks=(2, 4), calls=5)
    start(policy, 1)
    assert stops(policy, levels(0.1, 0.4, 0.4, 0.4, 0.4, 0.4)) == [2]
    assert stops(policy, levels(0.1, 0.6, 0.1, 0.4, 0.4, 0.4)) == [4]
    assert stops(policy, levels(0.1, 0.6, 0.1, 0.6, 0.6, 0.6)) == [5]
    assert (DDD().bound, DDD().checks, DDD().calls) == (-0.3, (5, 7, 9), 11)


def test_talon_fills_its_budget() -> None:
    policy = Talon(0.5)
    start(policy, 1)  # 9 nodes beside the root; level 1 counts 3
    alone = torch.tensor([0.0, -1.0, -2.0])  # one node within half of the best
    assert stops(policy, torch.stack([alone - level for level in range(6)])[None]) == [6]
    pair = torch.tensor([0.0, -0.6, -2.0])  # exp(-0.6) = 0.55
    assert stops(policy, torch.stack([pair - level for level in range(6)])[None]) == [4]  # 3 + 2 + 2 + 2
    assert stops(policy, levels(0.9, 0.9, 0.9, 0.9, 0.9, 0.9)) == [3]  # 3 + 3 + 3


def test_opt_tree_stops_at_a_small_gain() -> None:
    policy = OptTree(0.25)
    start(policy, 1)
    assert stops(policy, levels(0.9, 0.6, 0.3, 0.2, 0.1, 0.1)) == [4]
    assert stops(policy, levels(0.2, 0.6, 0.3, 0.2, 0.1, 0.1)) == [1]
    # the budget of 9 nodes is full after three levels: what a level adds is then its share of the best nine
    assert stops(policy, levels(0.9, 0.81, 0.78, 0.75, 0.7, 0.7)) == [4]
    wide = OptTree(0.25)
    start(wide, 1, TreeConfig(total_tokens=60, tree_top_k=3, max_calls=6))
    assert stops(wide, levels(0.9, 0.81, 0.78, 0.75, 0.7, 0.7)) == [6]


def test_gamma_tune_follows_what_was_accepted() -> None:
    policy, scores = GammaTune(0.5, calls=3, step=2, low=2, high=6), make_scores(1)
    signals = start(policy, 1)
    planned = []
    for accepted in (-1, 3, 5, 0, 0, 0, -1):  # first round; all; all; none three times; a new prompt
        signals.accept_length.fill_(accepted)
        planned.append(stops(policy, scores)[0])
    assert planned == [3, 5, 6, 2, 2, 2, 3]  # the average: 3, 3, 3, then 1.5 and less, held at 2
    with pytest.raises(ValueError, match="does not offer"):
        GammaTune().bind(1, TREE, CPU)
    with pytest.raises(ValueError, match="low <= calls <= high"):
        GammaTune(calls=13)


def test_heads_decide_as_their_network() -> None:
    scores = make_scores(20, 3)
    call = torch.arange(1.0, 6).expand(20, -1)
    head = AcceptanceHead(network(context=False), 0.6)
    start(head, 20)
    alive = network(context=False)(scores[:, :5], call, call).sigmoid().cumprod(1)
    assert torch.equal(decisions(head, scores), alive < 0.4)
    ltd = LevelPolicy(network(context=True))
    signals = start(ltd, 20)
    context = signals.context_length.float()[:, None].expand(-1, 5)
    logits = network(context=True)(scores[:, :5], call, context)
    assert torch.equal(decisions(ltd, scores), logits > 0)
    assert not torch.equal(logits > 0, network(context=True)(scores[:, :5], call, context * 0) > 0), "context is unread"
    with pytest.raises(ValueError, match="reads 3 scores a level"):
        head.bind(1, TreeConfig(tree_top_k=4), CPU)
    with pytest.raises(ValueError, match="does not offer"):
        LevelPolicy(network(context=True)).bind(1, TREE, CPU)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Talon(0.0), "share"),
        (lambda: OptTree(-1.0), "gain"),
        (lambda: DDD(math.nan), "bound"),
        (lambda: AcceptanceHead(network(context=False), 1.5), "bound"),
        (lambda: GammaTune(0.0), "rate"),
    ],
)
def test_bad_thresholds_are_named(make: Callable[[], StopPolicy], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
