"""Replay comparisons: tuning, calibration, oracles, intervals and the command, on rounds whose best answer is known."""

import argparse
import contextlib
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from radar.cli.evaluate import add_arguments, run
from radar.config import TreeConfig
from radar.policy.base import FixedDepth, RoundSignals, Threshold
from radar.policy.baselines_heads import AcceptanceHead
from radar.policy.lstm import PolicyNetwork, save_policy
from radar.train.backward import fit_backward
from radar.train.calibrate import expected_gain, fit_gain_curves, isotonic
from radar.train.contenders import EAGLE3, tuned_contenders
from radar.train.costs import CostTable
from radar.train.dataset import RecordedSignals, RoundDataset, RoundsHeader, read_rounds
from radar.train.evaluate import (
    ATTAINABLE,
    BEST_FIXED,
    HINDSIGHT,
    Evaluation,
    evaluate,
    oracle_stops,
    render,
    shared_prompts,
)
from radar.train.heads import train_acceptance_head, train_level_policy
from radar.train.replay import replay, replay_stops, stops_of_policy
from radar.train.round_writer import RoundWriter
from radar.train.tune import tune, tune_fixed_depth

CALLS, WIDTH = 8, 3
COSTS = CostTable.constant(call=0.3, decision=0.01, rest=3.0)
FREE = COSTS.without_decisions()


def make_rounds(rounds: int = 800, *, noise: float = 0.0, seed: int = 0) -> RoundDataset:
    """The path dies after a random level, and the scores fall off a cliff there unless noise hides it."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.randint(0, CALLS + 1, (rounds,), generator=generator)
    level = torch.arange(1, CALLS + 1)
    shown = depth + (torch.randn(rounds, generator=generator) * noise).round().long()
    scores = torch.where(level <= shown[:, None], -0.1 * level, -4.0 - 0.1 * level)
    scores = scores[..., None] - torch.rand(rounds, CALLS, WIDTH, generator=generator).cumsum(-1) * 0.5
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=CALLS))
    accept = torch.minimum(depth[:, None], level)
    return RoundDataset(scores, accept, torch.arange(rounds) // 8, torch.arange(rounds) % 8 * 20, header)


DATA, OTHER = make_rounds(), make_rounds(seed=1)


def by_name(results: list[Evaluation]) -> dict[str, Evaluation]:
    return {one.name: one for one in results}


def test_hindsight_oracle_is_the_best_choice_of_stops() -> None:
    few = make_rounds(5).truncate(4)
    few.accept_lengths[:] = torch.tensor([[0, 0, 0, 0]] * 3 + [[1, 2, 3, 4], [1, 2, 2, 1]])
    costs = CostTable.constant(call=2.0, rest=1.0)

    def speed(stops: Tensor) -> float:
        return replay_stops(stops, few, costs).tokens_per_time

    best = max(speed(torch.tensor(choice)) for choice in itertools.product((1, 2, 3, 4), repeat=5))
    assert speed(oracle_stops(few, costs)) == pytest.approx(best, rel=1e-12)
    ratios = (few.accept_lengths + 1) / costs.times(few.header.tree, few.position)
    assert speed(ratios.argmax(1) + 1) < 0.99 * best, "every round's best ratio is not the best ratio of sums"


def test_tuning_takes_the_fastest() -> None:
    fixed = tune_fixed_depth(DATA, COSTS)
    speeds = {n: replay_stops(torch.full((len(DATA),), n), DATA, FREE).tokens_per_time for n in range(1, CALLS + 1)}
    assert fixed.curve == speeds
    assert fixed.value == max(speeds, key=lambda n: speeds[n])
    mass = tune(Threshold, [0.0, 0.3, 1.0], DATA, COSTS)
    assert mass.value == 0.3
    assert mass.curve[0.3] > max(fixed.curve.values()) * 1.05
    with pytest.raises(ValueError, match="no values"):
        tune(Threshold, [], DATA, COSTS)


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


def test_backward_induction_finds_what_the_features_show() -> None:
    fit = fit_backward(DATA, FREE)
    reached = replay_stops(fit.stops(OTHER), OTHER, FREE).tokens_per_time
    visible = replay_stops((OTHER.accept_lengths[:, -1] + 1).clamp(max=CALLS), OTHER, FREE).tokens_per_time
    assert reached > 0.98 * visible
    assert fit.rate == pytest.approx(replay_stops(fit.stops(DATA), DATA, FREE).tokens_per_time)
    shuffled = make_rounds()
    hidden = shuffled.select(torch.arange(800))
    hidden.scores.copy_(shuffled.scores[torch.randperm(800, generator=torch.Generator().manual_seed(2))])
    blind = replay_stops(fit_backward(hidden, FREE).stops(OTHER), OTHER, FREE).tokens_per_time
    assert blind < 1.02 * max(tune_fixed_depth(OTHER, FREE).curve.values()), "scores that show nothing cannot help"


def test_backward_induction_looks_further_than_one_call() -> None:
    """A second call adds 0.3 tokens on average and costs 0.5, but it shows which rounds go on to eight."""
    long = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.3
    accept = torch.where(long[:, None], torch.arange(1, CALLS + 1), 1)
    scores = torch.full((1000, CALLS, WIDTH), -1.0)
    scores[~long, 1:] = -5.0
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=CALLS))
    data = RoundDataset(scores, accept, torch.arange(1000), torch.zeros(1000, dtype=torch.int64), header)
    costs = CostTable.constant(call=1.0, rest=3.0)
    assert fit_backward(data, costs).stops(data).tolist() == torch.where(long, 8, 2).tolist()


def blind_rounds(accept: Tensor) -> RoundDataset:
    """Rounds [N, T] whose scores say nothing."""
    header = RoundsHeader(TreeConfig(tree_top_k=WIDTH, max_calls=accept.shape[1]))
    scores = torch.full((*accept.shape, WIDTH), -1.0)
    return RoundDataset(scores, accept, torch.arange(len(accept)), torch.zeros(len(accept)).long(), header)


def test_backward_induction_does_not_peek_at_what_comes() -> None:
    """Half a token is what a call costs. The second adds 0.4 on average and the third 0.35, and nothing shows where: so
    one call is best, though who knew where the third pays would make the second."""
    data = blind_rounds(torch.tensor([[1, 1, 1]] * 60 + [[1, 2, 2]] * 5 + [[1, 2, 3]] * 35))
    assert fit_backward(data, CostTable.constant(call=1.0, rest=3.0)).stops(data).tolist() == [1] * 100


def test_backward_induction_reads_the_signals() -> None:
    """The outcome stands in a signal alone: only a fit that is shown it can use it."""
    data = make_rounds(noise=100.0)
    depth = data.accept_lengths[:, -1]
    none = torch.zeros(800)
    signals = RecordedSignals(torch.zeros(800, CALLS), depth, none, none.long())
    told = RoundDataset(*[*vars(data).values()][:6], signals, None)
    rates = [fit_backward(one, FREE).rate for one in (data, told)]
    assert rates[1] > 1.1 * rates[0]


def test_heads_learn_their_task() -> None:
    train, test = DATA, OTHER
    head = train_acceptance_head(train, epochs=60)
    best = tune(lambda bound: AcceptanceHead(head, bound), [0.5, 0.7, 0.9], train, COSTS)
    fixed = max(tune_fixed_depth(test, COSTS).curve.values())
    assert replay(best.policy, test, COSTS).tokens_per_time > 1.1 * fixed
    ltd = train_level_policy(train, COSTS, epochs=6)
    assert replay(ltd, test, COSTS).tokens_per_time > 1.1 * fixed


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_rejection_weighs_six_times_in_the_acceptance_head(share: float) -> None:
    """SpecDec++'s weight. Where the scores say nothing, the head learns the weighted share of paths that get there."""
    there = torch.arange(1000) < 1000 * share
    head = train_acceptance_head(blind_rounds(there.long()[:, None]), epochs=100)
    found = head(torch.full((1, 1, WIDTH), -1.0), torch.ones(1, 1), torch.ones(1, 1)).sigmoid().item()
    assert found == pytest.approx(share / (share + 6 * (1 - share)), abs=0.02)


class Spy:
    """Stops after as many calls as the signal says, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int]]] = []

    def attach(self, signals: RoundSignals) -> None:
        self.signals = signals

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        self.count = torch.zeros(batch_size, dtype=torch.int64)

    def reset(self) -> None:
        self.count.zero_()
        self.seen.append((self.signals.accept_length.tolist(), self.signals.context_length.tolist()))

    def stop(self, scores: Tensor) -> Tensor:
        self.count += 1
        return self.count >= self.signals.accept_length + 2


def test_signals_are_those_of_the_round_before() -> None:
    accept = torch.tensor([[1, 2, 3], [1, 1, 1], [0, 0, 0], [1, 2, 2], [0, 0, 0]])
    header = RoundsHeader(TreeConfig(tree_top_k=1, max_calls=3))
    prompt, position = torch.tensor([7, 4, 7, 7, 4]), torch.tensor([10, 20, 11, 12, 22])
    data = RoundDataset(torch.zeros(5, 3, 1), accept, prompt, position, header)
    spy = Spy()
    stops = stops_of_policy(spy, data)
    # prompt 4: rounds 1 and 4; prompt 7: rounds 0, 2, 3. A first round stops after call 1 (-1 + 2).
    assert stops.tolist() == [1, 1, 3, 2, 3]
    assert [seen[0] for seen in spy.seen] == [[-1, -1], [1, 1], [0, 0]]
    assert [seen[1] for seen in spy.seen] == [[20, 10], [22, 11], [22, 12]]


def test_evaluation_by_hand() -> None:
    policies = {EAGLE3: FixedDepth(8), "mass": Threshold(0.3)}
    rows = by_name(evaluate(policies, OTHER, COSTS, reference=EAGLE3, attainable=fit_backward(DATA, COSTS)))
    assert rows["mass"].tokens_per_second == pytest.approx(replay(Threshold(0.3), OTHER, COSTS).tokens_per_time)
    assert rows["mass"].ratio == pytest.approx(rows["mass"].tokens_per_second / rows[EAGLE3].tokens_per_second)
    assert rows[EAGLE3].interval == (1.0, 1.0)
    assert rows["mass"].interval[0] < rows["mass"].ratio < rows["mass"].interval[1]
    assert (rows[BEST_FIXED].gap_closed, rows[ATTAINABLE].gap_closed, rows[HINDSIGHT].hindsight_gap_closed) == (0, 1, 1)
    best, mass, top = (rows[name].tokens_per_second for name in (BEST_FIXED, "mass", HINDSIGHT))
    assert rows["mass"].hindsight_gap_closed == pytest.approx((mass - best) / (top - best))
    assert sum(rows["mass"].stop_histogram) == len(OTHER)
    assert rows["mass"].draft_calls == pytest.approx(stops_of_policy(Threshold(0.3), OTHER).double().mean().item())
    # EAGLE-3 decides nothing: it is not charged for decisions
    assert rows[EAGLE3].tokens_per_second == pytest.approx(
        replay_stops(torch.full((800,), 8), OTHER, FREE).tokens_per_time
    )
    with pytest.raises(ValueError, match="none of mass"):
        evaluate({"mass": Threshold()}, OTHER, COSTS, reference=EAGLE3)
    with pytest.raises(ValueError, match="two prompts"):
        evaluate(policies, OTHER.select(OTHER.prompt == 0), COSTS, reference=EAGLE3)
    text = render(list(rows.values()))
    assert len(text.splitlines()) == len(rows) + 2
    assert f"| {rows['mass'].ratio:.3f} |" in text


def test_oracles_and_fixed_depths_pay_for_no_decision() -> None:
    """At thirty times a call's price, whoever is charged for them, or chooses as if, is slower."""
    dear = CostTable.constant(call=0.3, decision=9.0, rest=3.0)
    fit = fit_backward(DATA, FREE)
    rows = by_name(evaluate({EAGLE3: FixedDepth(8)}, OTHER, dear, reference=EAGLE3, attainable=fit))
    stops = {
        EAGLE3: torch.full((800,), 8),
        BEST_FIXED: torch.full((800,), int(tune_fixed_depth(OTHER, FREE).value)),
        ATTAINABLE: fit.stops(OTHER),
        HINDSIGHT: oracle_stops(OTHER, FREE),
    }
    for name, calls in stops.items():
        assert rows[name].tokens_per_second == pytest.approx(replay_stops(calls, OTHER, FREE).tokens_per_time), name
    charged = replay_stops(oracle_stops(OTHER, dear), OTHER, FREE).tokens_per_time
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
    halved = RoundDataset(*[*vars(data).values()][:6], None, table)
    assert replay(FixedDepth(8), halved, FREE).mean_acceptance_length == pytest.approx(
        1 + (replay(FixedDepth(8), data, FREE).mean_acceptance_length - 1) / 2
    )
    rows = by_name(evaluate({"8": FixedDepth(8)}, halved, FREE, reference="8"))
    assert rows[HINDSIGHT].tokens_per_second == pytest.approx(
        replay_stops(oracle_stops(data, FREE), data, FREE).tokens_per_time
    ), "hindsight is about what came"


def test_all_contenders_are_tuned_on_other_rounds() -> None:
    train, develop = DATA.split_by_prompt(0.3)
    contenders = tuned_contenders(train, develop, COSTS)
    assert len(contenders) == 10
    rows = by_name(evaluate({name: one.policy for name, one in contenders.items()}, OTHER, COSTS, reference=EAGLE3))
    for name in ("beam-mass threshold", "expected extra token", "OPT-Tree", "LTD's MLP"):
        assert rows[name].tokens_per_second > 1.05 * rows[BEST_FIXED].tokens_per_second, name


def test_the_heads_of_the_literature_train_as_long_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def fit(network: object, rounds: int, loss_of: object, epochs: int, seed: int) -> None:
        told.append(epochs)

    monkeypatch.setattr("radar.train.heads._fit", fit)
    train, develop = DATA.split_by_prompt(0.3)
    tuned_contenders(train, develop, COSTS, epochs=7)
    assert told == [7, 7]


def write(file: Path, data: RoundDataset, prompts: range) -> None:
    with RoundWriter(file, data.header) as writer:
        for prompt in prompts:
            part = data.select(data.prompt == prompt)
            writer.write_prompt(prompt, part.position, part.scores, part.accept_lengths)


def command(*words: object) -> str:
    """What `radar evaluate` prints; its errors come out."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(parser.parse_args([str(word) for word in words]))
    return out.getvalue()


def test_rounds_that_judge_are_not_tuned_on(tmp_path: Path) -> None:
    """Neither in the same file nor among others, under other numbers."""
    data, judge, tune_on, mixed = make_rounds(240), *(tmp_path / f"{name}.jsonl" for name in "jtm")
    write(judge, data, range(10))
    write(tune_on, data, range(10, 30))
    write(mixed, replace(data, prompt=data.prompt + 3), range(12, 14))  # 9 and 10 of these
    assert shared_prompts(read_rounds(judge), read_rounds([tune_on, mixed])) == [9]
    for files, count in (([judge], 10), ([tune_on, mixed], 1)):
        with pytest.raises(ValueError, match=rf"the rounds of {count} prompts are in --rounds and in --tune-on"):
            command("--rounds", judge, "--tune-on", *files)
    with pytest.raises(ValueError, match="holds the rounds of"):
        command("--rounds", judge, judge)
    assert EAGLE3 in command("--rounds", judge, "--tune-on", tune_on)


def test_too_few_prompts_and_calls_are_named_before_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radar.train.contenders.tuned_contenders", None)
    data, one, three, rest, flat = make_rounds(240), *(tmp_path / f"{name}.jsonl" for name in ("1", "3", "r", "f"))
    write(one, data, range(1))
    write(three, data, range(1, 4))
    write(rest, data, range(4, 20))
    write(flat, data.truncate(1), range(20, 30))
    for words, message in (
        ((three,), "--rounds needs rounds of 4 prompts or more, found 3: two to judge on, one to train on and one"),
        ((one, "--tune-on", rest), "--rounds needs rounds of 2 prompts or more, found 1: intervals are by prompt"),
        ((rest, "--tune-on", one), "--tune-on needs rounds of 2 prompts or more, found 1: one to train on and one"),
        ((flat,), "--rounds: rounds with max_calls=1 leave nothing to decide: record with more --max-calls"),
        ((rest, "--tune-on", flat), "--tune-on: rounds with max_calls=1 leave nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            command("--rounds", *words)


def test_four_prompts_are_enough(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", make_rounds(240), range(4))
    for seed in range(3):
        assert EAGLE3 in command("--rounds", tmp_path / "r.jsonl", "--seed", seed)


def test_the_command(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", make_rounds(240), range(30))
    save_policy(PolicyNetwork(WIDTH, 8), tmp_path / "policy")
    COSTS.save(tmp_path / "costs.json")
    common = ["--rounds", tmp_path / "r.jsonl", "--costs", tmp_path / "costs.json"]
    with pytest.raises(ValueError, match=r"measured on 'any', .*device=None \(--any-device\)"):
        command(*common)
    common += ["--any-device", "--policy", f"mine={tmp_path / 'policy'}"]
    found = json.loads(command(*common, "--json"))
    assert {"mine", EAGLE3, HINDSIGHT} <= {row["name"] for row in found["policies"]}
    assert (found["rounds"], found["set_aside"]) == (120, 0)
    assert "| mine |" in command(*common)
    with pytest.raises(ValueError, match="NAME=PATH"):
        command(*common, "--policy", "x")
