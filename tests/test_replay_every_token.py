"""Replay where a round begins at every token, against a walk along each text in plain Python."""

from dataclasses import replace

import pytest
import torch

from radar import FixedDepth, Threshold, TreeConfig
from radar.train.backward import fit_backward
from radar.train.costs import CostTable
from radar.train.evaluate import BEST_FIXED, evaluate
from radar.train.replay import followed, replay, stops_of
from radar.train.rounds import RecordedSignals, RoundDataset, RoundsHeader
from radar.train.tune import tune_fixed_depth

CALLS, K, TEXTS, LENGTH = 5, 3, 6, 40
COSTS = CostTable.constant(call=0.2, rest=1.0, decision=0.01, device="any")
POLICIES = {"eagle3": FixedDepth(4), "threshold": Threshold(0.5)}


def rounds(seed=0):
    """Rounds at the places 7, 8, ... of six texts, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    count = TEXTS * LENGTH
    scores = (-torch.rand(count, CALLS, K, generator=generator) * 0.8).cumsum(1).sort(dim=2, descending=True).values
    depth = torch.randint(0, CALLS + 1, (count, 1), generator=generator)
    header = RoundsHeader(TreeConfig(tree_top_k=K, max_calls=CALLS), fields=("signals",), every_token=True)
    prompt, position = torch.arange(TEXTS).repeat_interleave(LENGTH), torch.arange(LENGTH).repeat(TEXTS) + 7
    last = torch.full((count,), -1)
    signals = RecordedSignals(scores.exp().sum(-1).cumsum(1).clamp(max=1), last, torch.rand(count), position - 6)
    lengths = depth.clamp(max=torch.arange(1, CALLS + 1))
    data = RoundDataset(scores, lengths, prompt, position, header, signals=signals)
    return data.select(torch.randperm(count, generator=generator))


def by_hand(data, stops):
    """{prompt: [rows that decoding goes through]}."""
    rows = {(int(p), int(x)): row for row, (p, x) in enumerate(zip(data.prompt, data.position, strict=True))}
    paths = {}
    for prompt in range(TEXTS):
        place, path = 7, []
        while (prompt, place) in rows:
            row = rows[prompt, place]
            path.append(row)
            place += int(data.accept_lengths[row, stops[row] - 1]) + 1
        paths[prompt] = path
    return paths


@pytest.mark.parametrize("policy", [FixedDepth(1), FixedDepth(5), Threshold(0.5)])
def test_replay_goes_from_round_to_round(policy):
    data = rounds()
    stops = stops_of(policy, data)
    path = sorted(row for rows in by_hand(data, stops).values() for row in rows)
    assert followed(stops, data).nonzero().flatten().tolist() == path
    assert TEXTS * 5 < len(path) < len(data)
    found, table = replay(policy, data, COSTS), COSTS
    if isinstance(policy, FixedDepth):
        table = COSTS.without_decisions()
    tokens = sum(int(data.accept_lengths[row, stops[row] - 1]) + 1 for row in path)
    times = table.times(data.header.tree, data.position)
    time = sum(float(times[row, stops[row] - 1]) for row in path)
    assert found.rounds == len(path)
    assert found.tokens_per_time == pytest.approx(tokens / time)
    assert found.mean_acceptance_length == pytest.approx(tokens / len(path))
    plain = replace(data, header=replace(data.header, every_token=False))
    assert replay(policy, plain, COSTS).rounds == len(data)
    assert bool(followed(stops, plain).all())


def test_evaluation_counts_the_same_rounds():
    data = rounds()
    rows = {row.name: row for row in evaluate(POLICIES, data, COSTS, reference="eagle3", attainable=None)}
    for name, policy in POLICIES.items():
        one = replay(policy, data, COSTS)
        assert rows[name].tokens_per_second == pytest.approx(one.tokens_per_time)
        assert rows[name].mean_acceptance_length == pytest.approx(one.mean_acceptance_length)
        assert rows[name].draft_calls == pytest.approx(one.draft_calls)
    best = tune_fixed_depth(data, COSTS)
    assert rows[BEST_FIXED].tokens_per_second == pytest.approx(best.curve[best.value])


def test_the_oracle_does_not_read_what_depends_on_the_policy():
    """A round's place in the walk decides the acceptance before it, so the fit takes it as unknown."""
    train, data = rounds(1), rounds(2)
    other = replace(data, signals=data.signals._replace(last_accept_length=torch.randint(0, 9, (len(data),))))
    fit = fit_backward(train, COSTS)
    assert torch.equal(fit.stops(data), fit.stops(other))
    plain = replace(train, header=replace(train.header, every_token=False))
    values = torch.randint(0, 9, (len(train),), generator=torch.Generator().manual_seed(3))
    plain = replace(plain, signals=train.signals._replace(last_accept_length=values))
    assert fit_backward(plain, COSTS).stops(data).shape == (len(data),)  # fitted to other rounds, judged on these
