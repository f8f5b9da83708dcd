"""Recorded rounds: the accepted length for every stop equals what decoding with that stop accepts."""

import shutil

import pytest
import torch
from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.replay.acceptance import Candidates, accept_lengths, path_slots, verified
from radar.replay.full_round import FullRounds
from radar.replay.record import record
from radar.replay.recording import read_rounds

PROMPTS = [[5, 3, 2, 1], [1, 2, 3], [4] * 9]


def make(total_tokens=12, max_calls=6):
    """Six tokens and beams of three: random drafts are right half of the time."""
    tree = TreeConfig(total_tokens=total_tokens, tree_top_k=3, max_calls=max_calls)
    target, draft = tiny_target(vocab_size=6), tiny_draft(vocab_size=6, draft_vocab_size=5)
    return RadarDecoder(
        target, draft=draft, policy=FixedDepth(1), tree=tree, max_length=160, engine="eager", fallback=False
    )


def accepted_by_decoding(decoder, prompt, context, calls):
    """Stop after `calls` calls in the round that starts at `context` known tokens."""
    decoder.policy = FixedDepth(calls)
    rounds = decoder.rounds(prompt + context)
    first = next(rounds)
    return first.tokens, next(rounds).accept_length


@pytest.mark.parametrize("total_tokens", [4, 40])
def test_lengths_equal_decoding_with_that_stop(tmp_path, total_tokens):
    decoder = make(total_tokens)
    record(decoder, PROMPTS[:2], tmp_path / "rounds", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds")
    assert len(data) > 5
    varied = set()
    for index, prompt in enumerate(PROMPTS[:2]):
        text = decoder.generate(prompt, max_new_tokens=40).token_ids
        for row in (data.prompt == index).nonzero().flatten().tolist()[::4]:
            known = int(data.position[row]) - len(prompt)
            for calls in (1, 2, 4, 6):
                # the last known token becomes the prompt's successor: the root of the first round
                first, expected = accepted_by_decoding(decoder, prompt, text[: known - 1], calls)
                assert first == text[known - 1 : known]
                assert int(data.accept_lengths[row, calls - 1]) == expected, (index, row, calls)
                varied.add(expected)
    assert len(varied) >= min(3, total_tokens - 2)


def decoded_round(decoder, prompt, text, known):
    """The tree of the round that starts at `known` tokens of the text, by the decoder's own steps."""
    rounds = decoder.rounds(prompt + text[: known - 1])
    next(rounds), next(rounds)
    return decoder.engine.drafter.tree.snapshot()


def test_scores_are_what_a_policy_reads(tmp_path):
    decoder = make()
    seen = []

    class Spy(FixedDepth):
        def stop(self, scores):
            seen.append(scores[0].clone())
            return super().stop(scores)

    record(decoder, PROMPTS[:1], tmp_path / "rounds", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds")
    text = decoder.generate(PROMPTS[0], max_new_tokens=40).token_ids
    decoder.policy = Spy(6)
    for row in range(len(data)):
        seen.clear()
        decoded_round(decoder, PROMPTS[0], text, int(data.position[row]) - len(PROMPTS[0]))
        per_call = torch.stack(seen[:5])  # the sixth call is the last: nobody asks after it
        torch.testing.assert_close(data.scores[row, :5], per_call.cpu(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_is_what_decoding_gives(temperature):
    """And rounds go through all beam nodes, more than a tree of 12 nodes holds."""
    decoder = make()
    found = FullRounds(decoder, temperature).text(PROMPTS[1], 50, seed=11).tokens
    sampling = SamplingParams(temperature=temperature, seed=11)
    assert found == decoder.generate(PROMPTS[1], max_new_tokens=50, sampling=sampling).token_ids
    assert len(found) == 50


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_of_several_sizes_are_recorded_at_once(tmp_path, temperature):
    options = {"max_new_tokens": 30, "temperature": temperature, "progress": False}
    files = {nodes: tmp_path / str(nodes) for nodes in (12, 4, 40)}
    summary = record(make(), PROMPTS[:1], files, **options)
    assert summary["out"] == str(files[12])
    for nodes, file in files.items():
        record(make(nodes), PROMPTS[:1], tmp_path / f"alone{nodes}", **options)
        assert read_rounds(file).fingerprint() == read_rounds(tmp_path / f"alone{nodes}").fingerprint()
    few, many = (read_rounds(files[nodes]).expected_accept() for nodes in (4, 40))
    assert few.mean() < many.mean()
    shutil.rmtree(files[4])
    record(make(), PROMPTS[:1], files, **options)  # only what is missing is written
    torch.testing.assert_close(read_rounds(files[4]).expected_accept(), few)


def test_rounds_cut_off_by_the_limit_are_left_out_unless_the_text_ended(tmp_path):
    decoder = make()
    record(decoder, PROMPTS[:1], tmp_path / "cut", max_new_tokens=30, progress=False)
    data = read_rounds(tmp_path / "cut")
    assert int(data.position.max()) <= len(PROMPTS[0]) + 30 - 6
    text = decoder.generate(PROMPTS[0], max_new_tokens=30).token_ids
    end_token = max(set(text), key=text.index)  # the one that comes up last
    decoder.eos_token_ids = frozenset({end_token})
    end = text.index(end_token) + 1
    record(decoder, PROMPTS[:1], tmp_path / "ended", max_new_tokens=30, progress=False)
    ended = read_rounds(tmp_path / "ended")
    left = end - (ended.position - len(PROMPTS[0]))
    assert int(left.min()) < 6
    assert bool((ended.accept_lengths < left[:, None]).all())  # the end token is nobody's draft
    assert bool((ended.accept_lengths[:, -1] == left - 1).any())


def test_a_wrong_continuation_changes_the_lengths():
    """The comparison above can fail: another text is accepted for other lengths."""
    decoder = make()
    with torch.inference_mode():
        decoder.policy = FixedDepth(6)
        rounds = decoder.rounds(PROMPTS[0], max_new_tokens=40)
        next(rounds), next(rounds)
        tree = Candidates.of(decoder.engine.drafter.tree)

    def lengths(*text):
        known = torch.tensor([[*text, *[-1] * (6 - len(text))]])
        return accept_lengths(verified(tree, decoder.tree), path_slots(tree, decoder.tree, known)).tolist()[0]

    best = int(tree.tokens[0, 0])  # under any budget it is verified
    assert lengths(best) == [1] * 6
    absent = next(token for token in range(6) if token not in tree.tokens[0, :3].tolist())
    assert lengths(absent, best) == [0] * 6
    assert lengths() == [0] * 6


def test_sampled_rounds_depend_on_the_seed_alone(tmp_path):
    decoder = make(total_tokens=8, max_calls=3)
    summary = record(decoder, PROMPTS, tmp_path / "r", max_new_tokens=30, temperature=0.8, seed=3, progress=False)
    data = read_rounds(tmp_path / "r")
    assert summary["new_rounds"] == len(data) > 10
    assert data.header.temperature == 0.8
    again = tmp_path / "again"
    record(decoder, PROMPTS, again, max_new_tokens=30, temperature=0.8, seed=3, progress=False)
    assert read_rounds(again).fingerprint() == data.fingerprint(), "a prompt's text depends on the seed alone"
    record(decoder, PROMPTS, tmp_path / "s", max_new_tokens=30, temperature=0.8, seed=4, progress=False)
    assert read_rounds(tmp_path / "s").fingerprint() != data.fingerprint()
    twice = tmp_path / "twice"
    record(decoder, PROMPTS[:1] * 2, twice, max_new_tokens=30, temperature=0.8, progress=False)
    first, second = (read_rounds(twice).select(read_rounds(twice).prompt == number) for number in (0, 1))
    assert first.scores.shape != second.scores.shape or not torch.equal(first.scores, second.scores)


def test_sampled_lengths_follow_their_distribution(tmp_path):
    """Realised accepted lengths against the recorded probabilities, over all rounds and every stop."""
    decoder = make(total_tokens=8, max_calls=3)
    record(decoder, PROMPTS * 2, tmp_path / "r", max_new_tokens=60, temperature=1.0, progress=False)
    data = read_rounds(tmp_path / "r")
    lengths = torch.arange(4)
    mean = data.expected_accept()
    variance = (data.distribution * lengths**2).sum(-1) - mean**2
    z = (data.accept_lengths - mean).sum(0) / variance.sum(0).sqrt()
    assert z.abs().max() < 4.5  # 3 comparisons: 2e-5 by chance
    assert mean[:, -1].mean() > 0.3
