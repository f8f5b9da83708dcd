"""What rules of the literature learn from rounds: isotonic curves, the heads, and how long these train."""

import pytest
import torch
from cliff_rounds import COSTS, WIDTH, blind_rounds, make_rounds
from torch import Tensor

from radar.config import TreeConfig
from radar.policy.baselines_heads import AcceptanceHead
from radar.replay.evaluate import BEST_FIXED, evaluate
from radar.replay.replay import replay, tune, tune_fixed_depth
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable
from radar.train import contenders as rules
from radar.train.contenders import (
    EAGLE3,
    expected_gain,
    fit_gain_curves,
    isotonic,
    train_acceptance_head,
    train_level_policy,
    tuned_contenders,
)

DATA, OTHER = make_rounds(), make_rounds(seed=1)


def test_isotonic_is_the_least_squares_fit() -> None:
    values = [1.0, 3.0, 2.0, 2.0, 5.0, 4.0, 0.0, 7.0]
    fitted = isotonic(values)
    assert fitted == sorted(fitted)
    assert isotonic(sorted(values)) == sorted(values)
    error = sum((a - b) ** 2 for a, b in zip(fitted, values, strict=True))
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0):  # no other rising sequence is nearer
        for _ in range(200):
            other = (torch.tensor(fitted) + scale * torch.randn(8, generator=generator)).sort().values
            assert float(((other - torch.tensor(values)) ** 2).sum()) >= error - 1e-6
    assert sum(fitted) == pytest.approx(sum(values))


def test_expected_gain_stops_where_a_call_does_not_pay() -> None:
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(4000, generator=generator)
    scores = (mass / WIDTH).log()[:, None, None].expand(-1, 2, WIDTH)
    gain = (torch.rand(4000, generator=generator) < mass).long()  # a second call adds `mass` tokens on average
    accept = torch.stack((torch.ones(4000, dtype=torch.int64), 1 + gain), 1)
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=2))
    data = RoundDataset(scores, accept, torch.arange(4000), torch.zeros(4000, dtype=torch.int64), header)
    curves = fit_gain_curves(data)
    for price in (0.2, 0.5, 0.8):
        assert expected_gain(curves, price).mass_by_call[0] == pytest.approx(price, abs=0.06)
    assert expected_gain(curves, 1.5).mass_by_call == (float("inf"),)
    assert expected_gain(curves, -0.1).mass_by_call == (0.0,)


def test_heads_learn_their_task() -> None:
    head = train_acceptance_head(DATA, epochs=60)
    best = tune(lambda bound: AcceptanceHead(head, bound), [0.5, 0.7, 0.9], DATA, COSTS)
    fixed = max(tune_fixed_depth(OTHER, COSTS).curve.values())
    assert replay(best.policy, OTHER, COSTS).tokens_per_time > 1.1 * fixed
    train, develop = DATA.split_by_prompt(0.3)
    ltd = train_level_policy(train, develop, COSTS, epochs=6)
    assert replay(ltd, OTHER, COSTS).tokens_per_time > 1.1 * fixed


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_rejection_weighs_six_times_in_the_acceptance_head(share: float) -> None:
    """SpecDec++'s weight. Where the scores say nothing, the head learns the weighted share of paths that get there."""
    there = torch.arange(1000) < 1000 * share
    head = train_acceptance_head(blind_rounds(there.long()[:, None]), epochs=100)
    found = head(torch.full((1, 1, WIDTH), -1.0), torch.ones(1, 1), torch.ones(1, 1)).sigmoid().item()
    assert found == pytest.approx(share / (share + 6 * (1 - share)), abs=0.02)


def test_the_level_policy_is_the_epoch_that_was_fastest_on_other_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its rate follows the throughput reached, never below the best fixed depth's."""
    told, rates, returns = iter((1.0, 9.0, 2.0)), [], rules.ratio_returns
    train, develop = DATA.split_by_prompt(0.3)
    seen: list[dict[str, Tensor]] = []

    def speed(network: torch.nn.Module, data: RoundDataset, costs: CostTable) -> float:
        if data is train:
            return 5.0 + len(seen)
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(told)

    def noted(accept: Tensor, times: Tensor, *, rate: float) -> Tensor:
        rates.append(rate)
        return returns(accept, times, rate=rate)

    monkeypatch.setattr(rules, "_speed", speed)
    monkeypatch.setattr(rules, "ratio_returns", noted)
    kept = train_level_policy(train, develop, COSTS, epochs=3).network.state_dict()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert not torch.equal(kept["layers.0.weight"], seen[2]["layers.0.weight"])
    fixed = max(tune_fixed_depth(train, COSTS).curve.values())
    assert rates[:3] == pytest.approx([fixed, max(fixed, 5.0), max(fixed, 6.0)])


def test_the_speed_of_a_level_network_is_its_policys() -> None:
    policy = train_level_policy(DATA, OTHER, COSTS, epochs=1)
    assert rules._speed(policy.network, OTHER, COSTS) == pytest.approx(replay(policy, OTHER, COSTS).tokens_per_time)


def test_all_contenders_are_tuned_on_other_rounds() -> None:
    train, develop = DATA.split_by_prompt(0.3)
    contenders = tuned_contenders(train, develop, COSTS, epochs=10)
    assert len(contenders) == 10
    policies = {name: one.policy for name, one in contenders.items()}
    rows = {row.name: row for row in evaluate(policies, OTHER, COSTS, reference=EAGLE3)}
    for name in ("beam-mass threshold", "expected extra token", "OPT-Tree", "LTD's MLP"):
        assert rows[name].tokens_per_second > 1.05 * rows[BEST_FIXED].tokens_per_second, name
    assert not contenders["beam-mass threshold"].at_edge


def test_the_best_at_the_edge_of_what_was_tried_is_said_to_be() -> None:
    """Where every call pays, the lowest threshold and the deepest fixed depth are the last that were tried."""
    long = blind_rounds(torch.arange(1, 5).expand(100, 4).clone())
    found = tuned_contenders(long, long, CostTable.constant(call=0.01, rest=1.0), epochs=1)
    assert found["fixed depth"].at_edge
    assert found["beam-mass threshold"].at_edge
    for values, expected in (([1.0, 3.0, 8.0], False), ([3.0, 8.0], True), ([1.0, 3.0], True), ([3.0], False)):
        from radar.policy.base import FixedDepth

        best = tune(lambda value: FixedDepth(int(value)), values, DATA, CostTable.constant(call=0.3, rest=1.0))
        assert (best.value, best.at_edge) == (3.0, expected)


def test_heads_train_as_long_as_the_network_they_are_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """RADAR's gets 80 epochs: after 10 LTD's MLP stood at 1.022 where 80 bring it to 1.057."""
    told: list[int] = []

    def fit(network: torch.nn.Module, loss_of: object, rounds: int, *, epochs: int, seed: int) -> tuple[()]:
        told.append(epochs)
        return ()

    monkeypatch.setattr(rules, "_fit", fit)
    train, develop = DATA.select(torch.arange(64)).split_by_prompt(0.3)
    tuned_contenders(train, develop, COSTS)
    assert told == [80, 80]
