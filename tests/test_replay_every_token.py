"""Replay where a round begins at every token: against a walk along each text in plain Python, and against decoding."""

from dataclasses import replace

import pytest
import torch
from test_record import PROMPTS, make

from radar import FixedDepth, SamplingParams, Threshold, TreeConfig
from radar.policy.baselines_history import GammaTune
from radar.replay.ends import Ends
from radar.replay.evaluate import BEST_FIXED, evaluate
from radar.replay.record import record
from radar.replay.recording import read_rounds
from radar.replay.replay import ends_of, followed, replay, tune_fixed_depth
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable

CALLS, K, TEXTS, LENGTH = 5, 3, 6, 40
COSTS = CostTable.constant(call=0.2, rest=1.0, decision=0.01, device="any")
POLICIES = {"eagle3": FixedDepth(4), "threshold": Threshold(0.5)}


def rounds(seed=0):
    """Rounds at the places 7, 8, ... of six texts, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    count = TEXTS * LENGTH
    scores = (-torch.rand(count, CALLS, K, generator=generator) * 0.8).cumsum(1).sort(dim=2, descending=True).values
    depth = torch.randint(0, CALLS + 1, (count, 1), generator=generator)
    header = RoundsHeader(TreeConfig(tree_top_k=K, max_calls=CALLS), every_token=True)
    prompt, position = torch.arange(TEXTS).repeat_interleave(LENGTH), torch.arange(LENGTH).repeat(TEXTS) + 7
    lengths = depth.clamp(max=torch.arange(1, CALLS + 1))
    data = RoundDataset(scores, lengths, prompt, position, header)
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
    stops = ends_of(policy, data).calls
    path = sorted(row for rows in by_hand(data, stops).values() for row in rows)
    assert followed(Ends(stops), data).nonzero().flatten().tolist() == path
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
    assert bool(followed(Ends(stops), plain).all())


def test_a_round_that_is_missing_is_no_end_of_the_text():
    """Set aside, it would end the replay of everything behind it without a word; the last ones may be left out."""
    data = rounds()
    hole = (data.prompt == 2) & (data.position == 20)
    message = "prompt 2 has no round at position 20, but one at 21"
    for policy in (FixedDepth(2), GammaTune()):
        with pytest.raises(ValueError, match=message):
            replay(policy, data.select(~hole), COSTS)
    short = data.select(~((data.prompt == 2) & (data.position >= 20)))
    assert replay(FixedDepth(2), short, COSTS).rounds < replay(FixedDepth(2), data, COSTS).rounds


def test_evaluation_counts_the_same_rounds():
    data = rounds()
    rows = {row.name: row for row in evaluate(POLICIES, data, COSTS, reference="eagle3")}
    for name, policy in POLICIES.items():
        one = replay(policy, data, COSTS)
        assert rows[name].tokens_per_second == pytest.approx(one.tokens_per_time)
        assert rows[name].mean_acceptance_length == pytest.approx(one.mean_acceptance_length)
        assert rows[name].draft_calls == pytest.approx(one.draft_calls)
    best = tune_fixed_depth(data, COSTS)
    assert rows[BEST_FIXED].tokens_per_second == pytest.approx(best.curve[best.value])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "temperature"),
    [(FixedDepth(1), 0.8), (FixedDepth(4), 0.0), (Threshold(0.5), 0.0), (Threshold(0.5), 0.8), (GammaTune(), 0.8)],
)
def test_replay_of_rounds_at_every_token_is_decoding(tmp_path, temperature, policy):
    """Round for round: where each begins, how many calls it makes and what is accepted."""
    decoder, prompts = make(), PROMPTS[:2]
    file = tmp_path / "r"
    record(decoder, prompts, file, max_new_tokens=50, temperature=temperature, every_token=True, progress=False)
    data = read_rounds(file)
    assert data.header.every_token
    assert len(data) > 2 * 40
    stops = ends_of(policy, data).calls
    made = followed(Ends(stops), data)
    found = []
    for row in made.nonzero().flatten().tolist():
        accepted = int(data.accept_lengths[row, stops[row] - 1])
        found.append((int(data.prompt[row]), int(data.position[row]), int(stops[row]), accepted))
    expected = []
    decoder.policy = policy
    for number, prompt in enumerate(prompts):
        position = len(prompt)
        sampling = SamplingParams(temperature=temperature, seed=number)
        for item in decoder.rounds(prompt, max_new_tokens=50, sampling=sampling):
            if not item.is_prefill and position <= len(prompt) + 50 - 6:  # later ones are not recorded
                expected.append((number, position, item.num_draft_calls, item.accept_length))
            position += len(item.tokens)
    assert len(found) > 20
    assert found == expected
    one = replay(policy, data, CostTable.constant(call=1.0, rest=5.0, device="any"))
    assert one.rounds == len(found)
    assert one.draft_calls == pytest.approx(sum(calls for _, _, calls, _ in found) / len(found))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replay_of_texts_that_end_gains_their_tokens(tmp_path, temperature):
    """And no more, where the draft goes beyond the end; in distribution neither."""
    decoder, file = make(), tmp_path / "r"
    decoder.eos_token_ids = frozenset({2})
    tried = [[*PROMPTS[i % 3], i % 6, i // 6, i % 2] for i in range(12)]
    ending = [p for p in tried if decoder.generate(p, max_new_tokens=80).finish_reason == "stop"]
    prompts = ending if temperature == 0 else tried
    assert len(prompts) >= 2
    record(decoder, prompts, file, max_new_tokens=80, temperature=temperature, every_token=True, progress=False)
    data, free = read_rounds(file), CostTable.constant(call=1.0, rest=5.0, device="any")
    for policy in (FixedDepth(1), FixedDepth(5)):
        decoder.policy, tokens, rounds = policy, 0, 0
        for number in data.prompt.unique().tolist():
            sampling = SamplingParams(temperature=temperature, seed=number)
            made = list(decoder.rounds(prompts[number], max_new_tokens=80, sampling=sampling))[1:]
            assert made[-1].finish_reason == "stop"  # none of these is cut off
            tokens, rounds = tokens + sum(len(r.tokens) for r in made), rounds + len(made)
        assert replay(policy, data, free).rounds == rounds > 8
        stops = ends_of(policy, data).calls
        gained = data.accept_lengths.gather(1, stops[:, None] - 1)[:, 0] + 1
        assert int(gained[followed(Ends(stops), data)].sum()) == tokens
    if temperature > 0:  # with only the end to come nothing is accepted, but another token might have been drawn
        last = data.select(torch.cat((data.prompt.diff() != 0, torch.tensor([True]))))
        assert last.accept_lengths.max() == 0
        assert last.distribution[:, :, 0].min() > 0
