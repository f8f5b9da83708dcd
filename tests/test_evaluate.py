"""Comparisons by replay: figures, oracles and intervals, on rounds whose best answer is known."""

import itertools
from dataclasses import replace

import pytest
import torch
from cliff_rounds import CALLS, COSTS, FREE, make_rounds
from torch import Tensor

from radar.policy.base import FixedDepth, Threshold
from radar.replay.ends import Ends
from radar.replay.evaluate import (
    BEST_FIXED,
    HINDSIGHT,
    KNOWING,
    Evaluation,
    evaluate,
    oracle_ends,
    outcome_of,
    render,
    speed_ratio,
)
from radar.replay.replay import ends_of, replay, replay_ends, tune, tune_fixed_depth
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train.contenders import EAGLE3

DATA, OTHER = make_rounds(), make_rounds(seed=1)


def by_name(results: list[Evaluation]) -> dict[str, Evaluation]:
    return {one.name: one for one in results}


def test_hindsight_oracle_is_the_best_choice_of_stops() -> None:
    few = make_rounds(5).truncate(4)
    few.accept_lengths[:] = torch.tensor([[0, 0, 0, 0]] * 3 + [[1, 2, 3, 4], [1, 2, 2, 1]])
    costs = CostTable.constant(call=2.0, rest=1.0)

    def speed(stops: Tensor) -> float:
        return replay_ends(Ends(stops), few, costs).tokens_per_time

    best = max(speed(torch.tensor(choice)) for choice in itertools.product((1, 2, 3, 4), repeat=5))
    assert speed(oracle_ends(few, costs, few.expected_accept()).calls) == pytest.approx(best, rel=1e-12)
    ratios = (few.accept_lengths + 1) / costs.times(few.header.tree, few.position)
    assert speed(ratios.argmax(1) + 1) < 0.99 * best, "every round's best ratio is not the best ratio of sums"


def test_tuning_takes_the_fastest() -> None:
    fixed = tune_fixed_depth(DATA, COSTS)
    speeds = {
        n: replay_ends(Ends(torch.full((len(DATA),), n)), DATA, FREE).tokens_per_time for n in range(1, CALLS + 1)
    }
    assert fixed.curve == speeds
    assert fixed.value == max(speeds, key=lambda n: speeds[n])
    mass = tune(Threshold, [0.0, 0.3, 1.0], DATA, COSTS)
    assert mass.value == 0.3
    assert mass.curve[0.3] > max(fixed.curve.values()) * 1.05


def test_evaluation_by_hand() -> None:
    policies = {EAGLE3: FixedDepth(8), "mass": Threshold(0.3)}
    rows = by_name(evaluate(policies, OTHER, COSTS, reference=EAGLE3))
    assert rows["mass"].tokens_per_second == pytest.approx(replay(Threshold(0.3), OTHER, COSTS).tokens_per_time)
    assert rows["mass"].ratio == pytest.approx(rows["mass"].tokens_per_second / rows[EAGLE3].tokens_per_second)
    assert rows[EAGLE3].interval == (1.0, 1.0)
    assert rows["mass"].interval[0] < rows["mass"].ratio < rows["mass"].interval[1]
    assert (rows[BEST_FIXED].hindsight_gap_closed, rows[HINDSIGHT].hindsight_gap_closed) == (0, 1)
    assert (KNOWING not in rows, rows["mass"].gap_closed) == (True, None)
    best, mass, top = (rows[name].tokens_per_second for name in (BEST_FIXED, "mass", HINDSIGHT))
    assert rows["mass"].hindsight_gap_closed == pytest.approx((mass - best) / (top - best))
    assert sum(rows["mass"].stop_histogram) == len(OTHER)
    assert rows["mass"].draft_calls == pytest.approx(ends_of(Threshold(0.3), OTHER).calls.double().mean().item())
    # EAGLE-3 decides nothing: it is not charged for decisions
    assert rows[EAGLE3].tokens_per_second == pytest.approx(
        replay_ends(Ends(torch.full((800,), 8)), OTHER, FREE).tokens_per_time
    )
    with pytest.raises(ValueError, match="none of mass"):
        evaluate({"mass": Threshold()}, OTHER, COSTS, reference=EAGLE3)
    with pytest.raises(ValueError, match="two prompts"):
        evaluate(policies, OTHER.select(OTHER.prompt == 0), COSTS, reference=EAGLE3)
    text = render(list(rows.values()))
    assert len(text.splitlines()) == len(rows) + 2
    assert f"  {rows['mass'].ratio:.3f}  " in text


def test_rounds_of_two_recordings_are_paired_by_their_prompts() -> None:
    """Half of the rounds of each text, as of a tree in which they are longer, at other costs: the texts differ a lot in
    their speed, and not in how much faster the one is than the other."""
    accept = (DATA.prompt % 10)[:, None].expand(-1, CALLS).contiguous()
    slow = replace(DATA, accept_lengths=accept)
    fast = replace(slow, accept_lengths=2 * accept + 1).select(torch.arange(len(DATA)) % 2 == 0)
    first, second = outcome_of(FixedDepth(2), slow, COSTS), outcome_of(FixedDepth(4), fast, COSTS)
    seconds = COSTS.rest_seconds + torch.tensor([2, 4]) * COSTS.draft_call_seconds[0]
    expected = 2 * float(seconds[0] / seconds[1])
    ratio, interval = speed_ratio(second, first)
    assert ratio == pytest.approx(second.speed / first.speed)
    assert (ratio, *interval) == pytest.approx((expected,) * 3)
    row = by_name(evaluate({"it": FixedDepth(4)}, fast, COSTS, reference=first))["it"]
    assert (row.ratio, row.interval) == (ratio, interval)
    with pytest.raises(ValueError, match="of other prompts, so that nothing pairs their rounds"):
        speed_ratio(second, outcome_of(FixedDepth(2), slow.select(slow.prompt > 0), COSTS))


def test_oracles_and_fixed_depths_pay_for_no_decision() -> None:
    """At thirty times a call's price, whoever is charged for them, or chooses as if, is slower."""
    dear = CostTable.constant(call=0.3, decision=9.0, rest=3.0)
    rows = by_name(evaluate({EAGLE3: FixedDepth(8)}, OTHER, dear, reference=EAGLE3))
    calls = {
        EAGLE3: torch.full((800,), 8),
        BEST_FIXED: torch.full((800,), int(tune_fixed_depth(OTHER, FREE).value)),
        HINDSIGHT: oracle_ends(OTHER, FREE, OTHER.accept_lengths).calls,
    }
    for name, stops in calls.items():
        speed = replay_ends(Ends(stops), OTHER, FREE).tokens_per_time
        assert rows[name].tokens_per_second == pytest.approx(speed), name
    charged = replay_ends(oracle_ends(OTHER, dear, OTHER.accept_lengths), OTHER, FREE).tokens_per_time
    assert charged < 0.999 * rows[HINDSIGHT].tokens_per_second, "the oracle would choose alike"


def test_the_interval_is_1_96_standard_errors_to_both_sides() -> None:
    """By the delta method over prompts; quantiles of 2000 draws are known to 3 %, and those of 90 % are 16 % nearer."""
    row = by_name(evaluate({"8": FixedDepth(8), "4": FixedDepth(4)}, OTHER, FREE, reference="8"))["4"]
    shares = torch.zeros(100, dtype=torch.float64)  # by prompt: how much it raises the logarithm of the ratio
    for depth, sign in ((4, 1), (8, -1)):
        tokens = OTHER.accept_lengths[:, depth - 1].double() + 1
        shares.index_add_(0, OTHER.prompt, sign * (tokens / tokens.sum() - 1 / len(OTHER)))  # all rounds take as long
    error = row.ratio * shares.square().sum().sqrt().item()
    assert (row.ratio - row.interval[0]) / error == pytest.approx(1.96, rel=0.08)
    assert (row.interval[1] - row.ratio) / error == pytest.approx(1.96, rel=0.08)


def test_intervals_are_by_prompt_and_cover() -> None:
    """Forty sets of one source: the 95 % interval holds the true ratio about 38 times."""
    policies = {"8": FixedDepth(8), "4": FixedDepth(4)}

    def one(data: RoundDataset) -> Evaluation:
        return by_name(evaluate(policies, data, FREE, reference="8"))["4"]

    truth = one(make_rounds(40_000)).ratio
    found = [one(make_rounds(160, seed=seed)) for seed in range(2, 42)]
    covered = sum(row.interval[0] <= truth <= row.interval[1] for row in found)
    assert covered >= 32  # 20 prompts each; at 0.95 fewer happen once in 4,000
    # prompts whose rounds stand there ten times: that says nothing more
    data = make_rounds(160)
    copies = data.select(torch.arange(160).repeat_interleave(10))
    assert one(copies).interval == pytest.approx(one(data).interval)


def test_expectations_count_where_the_distribution_is_known() -> None:
    data = make_rounds(80)
    table = torch.nn.functional.one_hot(data.accept_lengths, CALLS + 1).float()
    table = 0.5 * table + 0.5 * torch.nn.functional.one_hot(torch.zeros(80, CALLS).long(), CALLS + 1)
    halved = replace(data, distribution=table)
    assert replay(FixedDepth(8), halved, FREE).mean_acceptance_length == pytest.approx(
        1 + (replay(FixedDepth(8), data, FREE).mean_acceptance_length - 1) / 2
    )
    rows = by_name(evaluate({"8": FixedDepth(8)}, halved, FREE, reference="8"))
    assert rows[HINDSIGHT].tokens_per_second == pytest.approx(
        replay_ends(oracle_ends(data, FREE, data.accept_lengths), data, FREE).tokens_per_time
    ), "hindsight is about what came"


def test_the_oracle_that_knows_the_probabilities_is_a_bound() -> None:
    """Even rounds go on to the end half of the time, odd ones never: that is known, and what comes of it is not."""
    data = make_rounds(800, noise=100.0)
    even = (torch.arange(800) % 2 == 0)[:, None]
    table = torch.zeros(800, CALLS, CALLS + 1)
    table[..., 0] = torch.where(even, 0.5, 1.0)
    table[torch.arange(0, 800, 2)[:, None], torch.arange(CALLS), torch.arange(1, CALLS + 1)] = 0.5
    luck = torch.rand(800, 1, generator=torch.Generator().manual_seed(5)) < 0.5
    accept = torch.where(even & luck, torch.arange(1, CALLS + 1), 0)
    known = RoundDataset(data.scores, accept, data.prompt, data.position, data.header, table)
    rows = by_name(evaluate({"8": FixedDepth(8), "mass": Threshold(0.3)}, known, FREE, reference="8"))
    stops = torch.where(even[:, 0], CALLS, 1)
    assert rows[KNOWING].tokens_per_second == pytest.approx(replay_ends(Ends(stops), known, FREE).tokens_per_time)
    assert rows[KNOWING].stop_histogram == (400, *[0] * (CALLS - 2), 400)
    assert (rows[BEST_FIXED].gap_closed, rows[KNOWING].gap_closed) == (0, 1)
    best, mass, top = (rows[name].tokens_per_second for name in (BEST_FIXED, "mass", KNOWING))
    assert rows["mass"].gap_closed == pytest.approx((mass - best) / (top - best))
    assert best < top < rows[HINDSIGHT].tokens_per_second
