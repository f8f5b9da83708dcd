"""Recorded rounds: the accepted length for every stop equals what decoding with that stop accepts."""

import hashlib
import json
import sys
import types

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target
from test_acceptance import truncated
from test_fallback import Script

from radar import FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.train.acceptance import Candidates, accept_lengths, verified
from radar.train.dataset import read_rounds
from radar.train.drafted import FullRounds
from radar.train.record import record

PROMPTS = [[5, 3, 2, 1], [1, 2, 3], [4] * 9]


def make(total_tokens=12, max_calls=6):
    """Six tokens and beams of three: random drafts are right half of the time."""
    tree = TreeConfig(total_tokens=total_tokens, tree_top_k=3, max_calls=max_calls)
    target, draft = tiny_target(vocab_size=6), tiny_draft(vocab_size=6, draft_vocab_size=5)
    return RadarDecoder(
        target, draft=draft, policy=FixedDepth(1), tree=tree, max_length=160, engine="eager", fallback=False
    )


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

    record(decoder, PROMPTS[:1], tmp_path / "rounds.jsonl", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds.jsonl")
    text = decoder.generate(PROMPTS[0], max_new_tokens=40).token_ids
    decoder.policy = Spy(6)
    for row in range(len(data)):
        seen.clear()
        decoded_round(decoder, PROMPTS[0], text, int(data.signals.generated[row]))
        per_call = torch.stack(seen[:5])  # the sixth call is the last: nobody asks after it
        torch.testing.assert_close(data.scores[row, :5], per_call.cpu(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_text_is_what_decoding_gives(temperature):
    """And rounds go through all beam nodes, more than a tree of 12 nodes holds."""
    decoder, found = make(), []
    for item in FullRounds(decoder, temperature).of(PROMPTS[1], 50, seed=11):
        found += item.tokens
    sampling = SamplingParams(temperature=temperature, seed=11)
    assert found == decoder.generate(PROMPTS[1], max_new_tokens=50, sampling=sampling).token_ids
    assert len(found) == 50


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_of_several_sizes_are_recorded_at_once(tmp_path, temperature):
    options = {"max_new_tokens": 30, "temperature": temperature, "progress": False}
    files = {nodes: tmp_path / f"{nodes}.jsonl" for nodes in (12, 4, 40)}
    summary = record(make(), PROMPTS, files, **options)
    assert summary["out"] == str(files[12])
    for nodes, file in files.items():
        record(make(nodes), PROMPTS, tmp_path / "alone.jsonl", **options)
        assert file.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
        (tmp_path / "alone.jsonl").unlink()
    few, many = (read_rounds(files[nodes]).expected_accept() for nodes in (4, 40))
    assert few.mean() < many.mean()
    files[4].unlink()
    record(make(), PROMPTS, files, **options)  # only what is missing is written
    torch.testing.assert_close(read_rounds(files[4]).expected_accept(), few)


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
    assert bool((ended.accept_lengths < left[:, None]).all())  # the end token is nobody's draft
    assert bool((ended.accept_lengths[:, -1] == left - 1).any())


def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    record(make(), PROMPTS, whole, max_new_tokens=30, progress=False)
    rounds = FullRounds.of

    def interrupted(self, prompt, *args, **options):
        if list(prompt) == PROMPTS[1]:
            raise KeyboardInterrupt
        return rounds(self, prompt, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FullRounds, "of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record(make(), PROMPTS, parts, max_new_tokens=30, progress=False)
    result = record(make(), PROMPTS, parts, max_new_tokens=30, progress=False)
    assert result["prompts_done"] == 3
    assert parts.read_bytes() == whole.read_bytes()


def test_the_decoder_is_left_as_it_was(tmp_path):
    """Policy, fallback and the text in its caches; every round drafts, whatever the fallback says."""
    whole, mine = tmp_path / "whole.jsonl", tmp_path / "mine.jsonl"
    record(make(), PROMPTS, whole, max_new_tokens=30, progress=False)
    decoder = make()
    decoder.engine.fallback = fallback = Script("dpp")
    text = decoder.generate(PROMPTS[0], max_new_tokens=20).token_ids
    policy, told, held = decoder.policy, list(fallback.told), list(decoder.engine.admission.prefix.ids)
    record(decoder, PROMPTS, mine, max_new_tokens=30, progress=False)
    assert mine.read_bytes() == whole.read_bytes()
    assert decoder.policy is policy
    assert fallback.told == told != []
    assert decoder.engine.admission.prefix.ids == held
    assert decoder.generate(PROMPTS[0], max_new_tokens=20).token_ids == text


def test_a_source_serves_many_calls(tmp_path):
    decoder = make()
    sources, whole, parts = [FullRounds(decoder, 0.8)], tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    record(decoder, PROMPTS, whole, max_new_tokens=30, temperature=0.8, progress=False)
    for count in range(1, len(PROMPTS) + 1):
        record(decoder, PROMPTS[:count], parts, max_new_tokens=30, temperature=0.8, progress=False, sources=sources)
    assert parts.read_bytes() == whole.read_bytes()
    for other, options in ((make(), {}), (decoder, {"temperature": 0.0}), (decoder, {"every_token": True})):
        with pytest.raises(ValueError, match="of another decoder, temperature or every_token"):
            record(other, PROMPTS, tmp_path / "no.jsonl", **{"temperature": 0.8, **options}, sources=sources)


@pytest.mark.parametrize("every_token", [False, True])
def test_texts_decoded_at_once_are_recorded_in_order(tmp_path, every_token):
    """Three threads, seven texts of unlike lengths; and what was begun alone goes on together."""
    prompts = [[*PROMPTS[i % 3], i % 5, i % 3] for i in range(7)]
    decoder, options = make(), {"max_new_tokens": 20, "temperature": 0.8, "every_token": every_token, "progress": False}
    record(decoder, prompts, tmp_path / "one.jsonl", **options)
    sources = [FullRounds(decoder, 0.8, every_token=every_token) for _ in range(3)]
    record(decoder, prompts, tmp_path / "three.jsonl", **options, sources=sources)
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    record(decoder, prompts[:2], tmp_path / "grown.jsonl", **options)
    record(decoder, prompts, tmp_path / "grown.jsonl", **options, sources=sources)
    assert (tmp_path / "grown.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_an_error_in_one_of_several_texts_comes_through(tmp_path, monkeypatch):
    decoder, rounds = make(), FullRounds.of
    sources = [FullRounds(decoder, 0.0) for _ in range(2)]

    def failing(self, prompt, *args, **options):
        if len(prompt) == 5:
            raise RuntimeError("out of memory")
        return rounds(self, prompt, *args, **options)

    monkeypatch.setattr(FullRounds, "of", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        record(decoder, [PROMPTS[0], [1] * 5, *PROMPTS * 3], tmp_path / "r.jsonl", max_new_tokens=20, progress=False,
               sources=sources)  # fmt: skip
    assert read_rounds(tmp_path / "r.jsonl").prompt.unique().tolist() == [0]


def test_prompts_that_do_not_fit_are_named_before_anything_starts(tmp_path):
    decoder, out = make(), tmp_path / "rounds.jsonl"
    prompts = [PROMPTS[0], [1] * 200, PROMPTS[1], [2] * 160]
    message = (
        r"2 of 4 prompts leave no room .*max_length=160 .*prompts 1 \(200 tokens\), 3 \(160 tokens\).*--max-length"
    )
    with pytest.raises(ValueError, match=message):
        record(decoder, prompts, out, max_new_tokens=30, progress=False)
    with pytest.raises(ValueError, match="record: prompt 1: the prompt is empty"):
        record(decoder, [PROMPTS[0], []], out, max_new_tokens=30, progress=False)
    assert not out.exists()
    record(decoder, [PROMPTS[0], [2] * 130], out, max_new_tokens=60, progress=False)  # as much as there is room for
    last = read_rounds(out).select(read_rounds(out).prompt == 1).position
    assert 130 < int(last.min()) <= int(last.max()) <= 160 - 6
    with pytest.raises(ValueError, match=r"130 tokens with 31 behind it does not fit: .*max_length=160"):
        list(FullRounds(decoder, 0.0).of([2] * 130, 31, seed=0))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[5, 3, 2], *PROMPTS[1:]], {}, r"prompt_sha256 of prompt 0: '\w{16}' in the file"),
        ([[1], [2], [3], [4]], {}, "prompt_sha256 of prompt 0: "),
        (PROMPTS, {"max_new_tokens": 24}, "max_new_tokens of prompt 0: 40 in the file, 24 now"),
        (PROMPTS, {"seed": 5}, "seed of prompt 0: 0 in the file, 5 now"),
        (PROMPTS, {"metadata": {"target": "u"}}, "target: 't' in the file, 'u' now"),
        (PROMPTS, {"metadata": {}}, "target: 't' in the file, 'nothing' now"),
        (PROMPTS, {"metadata": {"target": "t", "draft": "d"}}, "draft: 'nothing' in the file, 'd' now"),
    ],
)
def test_going_on_with_other_texts_is_refused(tmp_path, prompts, options, message):
    """Whatever number of prompts is left to do, a file holds texts of one list and one setting."""
    file, common = tmp_path / "r.jsonl", {"max_new_tokens": 40, "metadata": {"target": "t"}, "progress": False}
    record(make(), PROMPTS[:2], file, **common)
    file.write_bytes(file.read_bytes() + b'{"prompt":2,')  # of a crash
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        record(make(), prompts, file, **{**common, **options})
    assert file.read_bytes() == before
    assert record(make(), PROMPTS, file, **common)["prompts_done"] == 3
    record(make(), PROMPTS, tmp_path / "whole.jsonl", **common)
    assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_text_depends_on_is_in_the_file(tmp_path):
    record(make(), PROMPTS, tmp_path / "r.jsonl", max_new_tokens=155, seed=7, progress=False)
    lines = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    done = [line for line in lines if "prompt_done" in line]
    digests = [hashlib.sha256(str(prompt).replace(" ", "").encode()).hexdigest()[:16] for prompt in PROMPTS]
    assert done == [
        {"prompt_done": n, "prompt_sha256": digests[n], "max_new_tokens": limit, "seed": 7}
        for n, limit in enumerate((155, 155, 151))  # the cache holds 160
    ]


@pytest.mark.parametrize("every_token", [False, True])
def test_files_of_before_are_gone_on_with(tmp_path, every_token):
    """Their prompts carry no facts, and nobody can say that those that come now are others; what is added says it."""
    file, options = tmp_path / "r.jsonl", {"max_new_tokens": 40, "every_token": every_token, "progress": False}
    record(make(), PROMPTS[:1], file, **options)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:-1], b'{"prompt_done":0}']) + b"\n")
    assert set(read_rounds(file).prompt.tolist()) == {0}
    options["metadata"] = {"target": "t"}
    for count in (2, 3):
        assert record(make(), PROMPTS[:count], file, **options)["prompts_done"] == count
    assert set(read_rounds(file).prompt.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="max_new_tokens of prompt 1: 40 in the file, 50 now"):
        record(make(), PROMPTS, file, **{**options, "max_new_tokens": 50})


def test_a_recording_without_a_round_warns(tmp_path, recwarn):
    decoder, file = make(), tmp_path / "r.jsonl"
    for _ in range(2):  # also where nothing is left to do
        with pytest.warns(UserWarning, match="r.jsonl holds no round: .*max_calls=6 .*max_new_tokens=4 did neither"):
            assert record(decoder, PROMPTS, file, max_new_tokens=4, progress=False)["new_rounds"] == 0
    with pytest.raises(ValueError, match="max_new_tokens of prompt 0: 4 in the file, 40 now"):
        record(decoder, PROMPTS, file, max_new_tokens=40, progress=False)
    recwarn.clear()
    for _ in range(2):
        record(decoder, PROMPTS, tmp_path / "s.jsonl", max_new_tokens=40, progress=False)
    assert not recwarn.list


def test_a_wrong_continuation_changes_the_lengths():
    """The comparison above can fail: another text is accepted for other lengths."""
    decoder = make()
    with torch.inference_mode():
        decoder.policy = FixedDepth(6)
        rounds = decoder.rounds(PROMPTS[0], max_new_tokens=40)
        next(rounds), next(rounds)
        tree = Candidates.of(decoder.engine.drafter.tree)

    def lengths(*text):
        return accept_lengths(tree, verified(tree), torch.tensor([[*text, *[-1] * (6 - len(text))]])).tolist()[0]

    best = int(tree.tokens[0, 0])  # under any budget it is verified
    assert lengths(best) == [1] * 6
    absent = next(token for token in range(6) if token not in tree.tokens[0, :3].tolist())
    assert lengths(absent, best) == [0] * 6
    assert lengths() == [0] * 6


def test_signals_are_the_rounds_own(tmp_path):
    decoder = make()
    record(decoder, PROMPTS[:1], tmp_path / "rounds.jsonl", max_new_tokens=40, progress=False)
    data = read_rounds(tmp_path / "rounds.jsonl")
    prompt, signals = PROMPTS[0], data.signals
    assert (signals.generated + len(prompt)).tolist() == data.position.tolist()
    assert signals.last_accept_length.tolist() == [-1, *(signals.generated.diff() - 1).tolist()]
    text = decoder.generate(prompt, max_new_tokens=40).token_ids
    for row in range(len(data)):
        known = int(signals.generated[row])
        before = torch.tensor([prompt + text[: known - 1]], device=DEVICE)
        log_probs = decoder.model(before).logits[0, -1].detach().double().log_softmax(-1)
        assert float(signals.target_entropy[row]) == pytest.approx(
            -float((log_probs.exp() * log_probs).sum()), abs=1e-3
        )
    decoder.policy = FixedDepth(6)
    for row in range(3):
        tree = decoded_round(decoder, prompt, text, int(signals.generated[row]))
        for calls in (1, 3, 6):
            best = truncated(tree, calls).scores[0].sort(descending=True).values[:11]
            assert float(signals.expected_lengths[row, calls - 1]) == pytest.approx(float(best.exp().sum()), abs=1e-4)


def test_sampled_rounds_depend_on_the_seed_alone(tmp_path):
    decoder = make(total_tokens=8, max_calls=3)
    summary = record(decoder, PROMPTS, tmp_path / "r.jsonl", max_new_tokens=30, temperature=0.8, seed=3, progress=False)
    data = read_rounds(tmp_path / "r.jsonl")
    assert summary["new_rounds"] == len(data) > 10
    assert data.header.temperature == 0.8
    again = tmp_path / "again.jsonl"
    record(decoder, PROMPTS, again, max_new_tokens=30, temperature=0.8, seed=3, progress=False)
    assert again.read_bytes() == (tmp_path / "r.jsonl").read_bytes(), "a prompt's text depends on the seed alone"
    record(decoder, PROMPTS, tmp_path / "s.jsonl", max_new_tokens=30, temperature=0.8, seed=4, progress=False)
    assert read_rounds(tmp_path / "s.jsonl").fingerprint() != data.fingerprint()
    twice = tmp_path / "twice.jsonl"
    record(decoder, PROMPTS[:1] * 2, twice, max_new_tokens=30, temperature=0.8, progress=False)
    first, second = (read_rounds(twice).select(read_rounds(twice).prompt == number) for number in (0, 1))
    assert first.scores.shape != second.scores.shape or not torch.equal(first.scores, second.scores)


def test_sampled_lengths_follow_their_distribution(tmp_path):
    """Realised accepted lengths against the recorded probabilities, over all rounds and every stop."""
    decoder = make(total_tokens=8, max_calls=3)
    record(decoder, PROMPTS * 2, tmp_path / "r.jsonl", max_new_tokens=60, temperature=1.0, progress=False)
    data = read_rounds(tmp_path / "r.jsonl")
    lengths = torch.arange(4)
    mean = data.expected_accept()
    variance = (data.distribution * lengths**2).sum(-1) - mean**2
    z = (data.accept_lengths - mean).sum(0) / variance.sum(0).sqrt()
    assert z.abs().max() < 4.5  # 3 comparisons: 2e-5 by chance
    assert mean[:, -1].mean() > 0.3


def test_processes_share_the_prompts(tmp_path, monkeypatch):
    """As under `accelerate launch`; the library itself is replaced by the two numbers that are read from it."""
    record(make(), PROMPTS, tmp_path / "whole.jsonl", max_new_tokens=30, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for index in range(2):
        fake = types.SimpleNamespace(
            PartialState=lambda cpu, i=index: types.SimpleNamespace(process_index=i, num_processes=2)
        )
        monkeypatch.setitem(sys.modules, "accelerate", fake)
        record(make(), PROMPTS, tmp_path / "r.jsonl", max_new_tokens=30, progress=False)
    assert sorted(file.name for file in tmp_path.glob("r.*")) == ["r.shard-0-of-2.jsonl", "r.shard-1-of-2.jsonl"]
    data, whole = read_rounds(tmp_path / "r.jsonl"), read_rounds(tmp_path / "whole.jsonl")
    assert data.select(data.prompt.sort(stable=True).indices).fingerprint() == whole.fingerprint()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="WORLD_SIZE=3, but accelerate counts 2"):
        record(make(), PROMPTS, tmp_path / "n.jsonl", progress=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match="accelerate is not installed"):
        record(make(), PROMPTS, tmp_path / "n.jsonl", progress=False)
