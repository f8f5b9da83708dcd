"""Recorded rounds: the accepted length for every stop equals what decoding with that stop accepts."""

import pytest
import torch
from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.train.dataset import read_rounds
from radar.train.record import accept_lengths, record

PROMPTS = [[5, 3, 2, 1], [1, 2, 3], [4] * 9]


def make(total_tokens=12, max_calls=6):
    """Six tokens and beams of three: random drafts are right half of the time."""
    tree = TreeConfig(total_tokens=total_tokens, tree_top_k=3, max_calls=max_calls)
    target, draft = tiny_target(vocab_size=6), tiny_draft(vocab_size=6, draft_vocab_size=5)
    return RadarDecoder(target, draft=draft, policy=FixedDepth(1), tree=tree, max_length=160)


def accepted_by_decoding(prompt, context, calls, **tree):
    """Stop after `calls` calls in the round that starts at `context` known tokens."""
    decoder = make(**tree)
    decoder.policy = FixedDepth(calls)
    rounds = decoder.rounds(prompt + context)
    first = next(rounds)
    return first.tokens, next(rounds).accept_length


@pytest.mark.parametrize("total_tokens", [4, 12, 40])
def test_lengths_equal_decoding_with_that_stop(tmp_path, total_tokens):
    decoder = make(total_tokens)
    record(decoder, PROMPTS, tmp_path / "rounds.jsonl", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds.jsonl")
    assert len(data) > 5
    varied = set()
    for index, prompt in enumerate(PROMPTS):
        text = decoder.generate(prompt, max_new_tokens=60).token_ids
        for row in (data.prompt == index).nonzero().flatten().tolist()[::3]:
            known = int(data.position[row]) - len(prompt)
            for calls in (1, 2, 4, 6):
                # the last known token becomes the prompt's successor: the root of the first round
                first, expected = accepted_by_decoding(prompt, text[: known - 1], calls, total_tokens=total_tokens)
                assert first == text[known - 1 : known]
                assert int(data.accept_lengths[row, calls - 1]) == expected, (index, row, calls)
                varied.add(expected)
    assert len(varied) >= min(3, total_tokens - 2)


def test_scores_are_what_a_policy_reads(tmp_path):
    decoder = make()
    seen = []

    class Spy(FixedDepth):
        def stop(self, scores):
            seen.append(scores[0].clone())
            return super().stop(scores)

    record(decoder, PROMPTS[:1], tmp_path / "rounds.jsonl", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds.jsonl")
    decoder.policy = Spy(6)
    decoder.generate(PROMPTS[0], max_new_tokens=40)
    per_round = torch.stack(seen).view(-1, 5, 3)  # the sixth call is the last: nobody asks after it
    torch.testing.assert_close(data.scores[:, :5], per_round[: len(data)], atol=2e-5, rtol=0)


def test_rounds_cut_off_by_the_limit_are_left_out_unless_the_text_ended(tmp_path):
    decoder = make()
    record(decoder, PROMPTS[:1], tmp_path / "cut.jsonl", max_new_tokens=30, progress=False)
    data = read_rounds(tmp_path / "cut.jsonl")
    assert int(data.position.max()) <= len(PROMPTS[0]) + 30 - 6
    text = decoder.generate(PROMPTS[0], max_new_tokens=30).token_ids
    end_token = max(set(text), key=text.index)  # the one that comes up last
    decoder.eos_token_ids = frozenset({end_token})
    end = text.index(end_token) + 1
    record(decoder, PROMPTS[:1], tmp_path / "ended.jsonl", max_new_tokens=30, progress=False)
    ended = read_rounds(tmp_path / "ended.jsonl")
    left = end - (ended.position - len(PROMPTS[0]))
    assert int(left.min()) < 6
    assert bool((ended.accept_lengths <= left[:, None]).all())


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    record(make(), PROMPTS, whole, max_new_tokens=30, progress=False)
    decoder = make()
    rounds = decoder.rounds

    def interrupted(prompt, **options):
        if list(prompt) == PROMPTS[1]:
            raise KeyboardInterrupt
        return rounds(prompt, **options)

    monkeypatch.setattr(decoder, "rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(decoder, PROMPTS, parts, max_new_tokens=30, progress=False)
    result = record(make(), PROMPTS, parts, max_new_tokens=30, progress=False)
    assert result["prompts_done"] == 3
    assert parts.read_bytes() == whole.read_bytes()


def test_a_prompt_that_does_not_fit_is_named_and_nothing_is_lost(tmp_path):
    decoder = make()
    with pytest.raises(ValueError, match="the prompt has 200 tokens and the cache holds max_length=160"):
        record(decoder, [PROMPTS[0], [1] * 200], tmp_path / "rounds.jsonl", max_new_tokens=30, progress=False)
    assert set(read_rounds(tmp_path / "rounds.jsonl").prompt.tolist()) == {0}


def test_a_wrong_continuation_changes_the_lengths():
    """The comparison above can fail: another text is accepted for other lengths."""
    decoder = make()
    with torch.inference_mode():
        decoder.policy = FixedDepth(6)
        rounds = decoder.rounds(PROMPTS[0], max_new_tokens=40)
        next(rounds), next(rounds)
        tree = decoder.engine.drafter.tree.snapshot()
    best = int(tree.tokens[0, 0])  # under any budget it is verified
    assert accept_lengths(tree, [best]).tolist() == [1] * 6
    absent = next(token for token in range(6) if token not in tree.tokens[0, :3].tolist())
    assert accept_lengths(tree, [absent, best]).tolist() == [0] * 6
    assert accept_lengths(tree, []).tolist() == [0] * 6
