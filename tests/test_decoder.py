"""RadarDecoder and AutoregressiveDecoder as people use them: limits, end tokens, streams."""

import numpy as np
import pytest
import torch
from decoders import PROMPT, WordTokenizer, both, make
from fakes import DEVICE, VOCAB, hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, RadarPolicy, SamplingParams, Threshold, TreeConfig
from radar.errors import UsageError
from radar.policy.network import PolicyNetwork


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 124])
def test_max_new_tokens_is_exact(limit):
    for decoder in both():
        out = decoder.generate(PROMPT, max_new_tokens=limit)
        assert len(out.token_ids) == limit == out.metrics.num_tokens
        assert out.finish_reason == "length"


def test_without_a_limit_the_cache_is_filled():
    for decoder in both():
        assert len(decoder.generate(PROMPT).token_ids) == 128 - len(PROMPT)


def test_generation_ends_at_the_first_end_token():
    free = hf_greedy(tiny_target(), PROMPT, 60)
    for end in set(free):
        expected = free[: free.index(end) + 1]
        for decoder in both():
            decoder.eos_token_ids = [end]
            out = decoder.generate(PROMPT, max_new_tokens=60)
            assert out.token_ids == expected
            assert out.finish_reason == "stop"


def test_end_tokens_that_were_assigned_end_ids_too():
    free = hf_greedy(tiny_target(), PROMPT, 40)
    ids = torch.tensor([PROMPT], device=DEVICE)
    for decoder in both():
        decoder.model.generation_config.eos_token_id = free[3]
        for call in (decoder.generate, decoder.generate_ids):

            def said(call=call, **options):
                out = call(ids, max_new_tokens=40, pad_token_id=0, **options)
                return out[0, len(PROMPT) :].tolist() if isinstance(out, torch.Tensor) else out.token_ids

            decoder._ends = None
            assert said() == free[: free.index(free[3]) + 1]
            decoder.eos_token_ids = {(end := free[9])}
            assert said() == free[: free.index(end) + 1]
            assert said(eos_token_id=free[1]) == free[: free.index(free[1]) + 1]
            assert said(eos_token_id=[]) == free
            decoder.eos_token_ids = ()
            assert said() == free
    for same in (end, torch.tensor([end]), np.array([end]), (end,)):
        decoder.eos_token_ids = same
        assert decoder.eos_token_ids == {end}
        assert said(eos_token_id=same) == free[: free.index(end) + 1]
    assert said(eos_token_id=np.array([], dtype=np.int64)) == free
    decoder.eos_token_ids = None
    assert decoder.eos_token_ids == {free[3]}
    decoder.eos_token_ids = ()
    for wrong in ({VOCAB}, {-1}, {"</s>"}, {True}, VOCAB, [[5]]):
        with pytest.raises(UsageError, match="eos_token_id must be a token id or several, 0 to 16"):
            decoder.eos_token_ids = wrong
    assert decoder.eos_token_ids == frozenset()


def test_end_tokens_come_from_the_generation_config():
    model = tiny_target()
    model.generation_config.eos_token_id = [3, 4]
    assert AutoregressiveDecoder(model, max_length=64).eos_token_ids == {3, 4}


def test_text_and_ids_are_the_same_prompt():
    decoder = make(tokenizer=WordTokenizer())
    text = " ".join(f"w{i}" for i in PROMPT)
    outputs = [
        decoder.generate(prompt, max_new_tokens=20)
        for prompt in (text, PROMPT, tuple(PROMPT), torch.tensor(PROMPT), torch.tensor([PROMPT]))
    ]
    assert len({tuple(out.token_ids) for out in outputs}) == 1
    assert outputs[0].text == decoder.tokenizer.decode(outputs[0].token_ids)


def test_stream_is_the_text_in_pieces():
    decoder = make(tokenizer=WordTokenizer())
    whole = decoder.generate(PROMPT, max_new_tokens=60)
    assert "\u00e9" in whole.text  # whole characters come out of halves
    stream = decoder.stream(PROMPT, max_new_tokens=60)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.output
    pieces = list(stream)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 5
    assert stream.output.token_ids == whole.token_ids
    assert stream.output.metrics.num_draft_calls == whole.metrics.num_draft_calls


def test_a_stream_can_be_left_and_the_decoder_used_again():
    decoder = make(tokenizer=WordTokenizer())
    expected = decoder.generate(PROMPT, max_new_tokens=30).token_ids
    abandoned = decoder.stream(PROMPT, max_new_tokens=30)
    next(abandoned)
    assert decoder.generate(PROMPT, max_new_tokens=30).token_ids == expected
    abandoned.close()
    assert list(abandoned) == []
    assert decoder.generate(PROMPT, max_new_tokens=30).token_ids == expected


@pytest.mark.slow
def test_loose_names_are_sampling_parameters():
    names = {"temperature": 0.9, "top_p": 0.9, "top_k": 8, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 3}
    names["logit_bias"] = {4: 1.5}
    for decoder in both():
        expected = decoder.generate(PROMPT, max_new_tokens=40, sampling=SamplingParams(**names)).token_ids
        assert decoder.generate(PROMPT, max_new_tokens=40, **names).token_ids == expected
        assert decoder.generate(PROMPT, max_new_tokens=40, do_sample=True, **names).token_ids == expected
        assert decoder.generate(PROMPT, max_length=44, do_sample=None, **names).token_ids == expected
        on_host = decoder.generate(PROMPT, max_new_tokens=40, logits_processor=[lambda ids, s: s], **names)
        assert on_host.token_ids == expected  # bias and penalty as processors say what the kernels say
        one = decoder.generate(PROMPT, max_new_tokens=40, sampling=SamplingParams(temperature=1.0, seed=2)).token_ids
        assert decoder.generate(PROMPT, max_new_tokens=40, do_sample=True, seed=2).token_ids == one
        greedy = decoder.generate(PROMPT, max_new_tokens=40).token_ids
        assert decoder.generate(PROMPT, max_new_tokens=40, do_sample=False, temperature=0.0).token_ids == greedy


def test_end_tokens_and_criteria_of_one_call():
    free = hf_greedy(tiny_target(), PROMPT, 60)
    end = free[7]
    for decoder in both():
        out = decoder.generate(PROMPT, max_new_tokens=60, eos_token_id=[end, end])
        assert (out.token_ids, out.finish_reason) == (free[: free.index(end) + 1], "stop")
        assert decoder.generate(PROMPT, max_new_tokens=60).token_ids == free
        for length in (1, 2, 7, 31):
            criterion = [lambda ids, scores, length=length: ids.shape[1] >= len(PROMPT) + length]
            out = decoder.generate(PROMPT, max_new_tokens=60, stopping_criteria=criterion)
            assert (out.token_ids, out.finish_reason) == (free[:length], "stop")
        never = decoder.generate(PROMPT, max_new_tokens=9, stopping_criteria=[lambda ids, scores: False])
        assert (never.token_ids, never.finish_reason) == (free[:9], "length")


def test_stop_strings_end_a_stream_where_they_first_appear():
    decoder = make(tokenizer=WordTokenizer())
    whole = decoder.generate(PROMPT, max_new_tokens=60)
    words = whole.text.split()
    for stop in (" ".join(words[5:7]), words[20], "\u00e9", words[3][1:] + " "):
        stream = decoder.stream(PROMPT, max_new_tokens=60, stop_strings=["not there", stop])
        text = "".join(stream)
        assert whole.text.startswith(text)
        assert stop in text
        assert stop not in decoder.tokenizer.decode(stream.output.token_ids[:-1])
        assert stream.output.finish_reason == "stop"


def test_two_decoders_share_a_model():
    model, draft = tiny_target(), tiny_draft()
    first = RadarDecoder(model, draft=draft, policy=FixedDepth(3), max_length=64)
    second = RadarDecoder(model, draft=draft, policy=Threshold(0.2), max_length=64)
    expected = hf_greedy(model, PROMPT, 30)
    one = first.rounds(PROMPT, max_new_tokens=30)
    two = second.rounds(PROMPT, max_new_tokens=30)
    texts = ([], [])
    for a, b in zip(one, two, strict=False):
        texts[0].extend(a.tokens), texts[1].extend(b.tokens)
    texts[0].extend(t for r in one for t in r.tokens), texts[1].extend(t for r in two for t in r.tokens)
    assert texts == (expected, expected)


def test_metrics_count_what_happened():
    out = make(FixedDepth(5), engine="eager").generate(PROMPT, max_new_tokens=50)
    m = out.metrics
    assert m.num_tokens == 50
    assert m.draft_calls_per_round == 5
    assert m.num_draft_calls == 5 * m.num_spec_steps
    assert m.stop_histogram == {5: m.num_spec_steps}
    assert sum(n * c for n, c in m.acceptance_histogram.items()) == m.num_accepted_draft_tokens
    assert m.mean_acceptance_length == 1 + m.num_accepted_draft_tokens / m.num_spec_steps
    assert 0 <= 1 + m.num_spec_steps + m.num_accepted_draft_tokens - 50 <= 5  # all but what the limit cut
    assert set(m.seconds_by_part) == {"prefill", "draft", "policy", "verify", "accept"}
    assert sum(m.seconds_by_part.values()) <= m.seconds
    plain = AutoregressiveDecoder(tiny_target(), max_length=128).generate(PROMPT, max_new_tokens=50).metrics
    assert (plain.num_draft_calls, plain.mean_acceptance_length, plain.num_spec_steps) == (0, 1.0, 49)


def test_one_call_is_the_smallest_tree():
    out = make(FixedDepth(1), tree=TreeConfig(total_tokens=11, max_calls=1)).generate(PROMPT, max_new_tokens=40)
    assert out.token_ids == hf_greedy(tiny_target(), PROMPT, 40)
    assert out.metrics.stop_histogram == {1: out.metrics.num_spec_steps}


def test_a_sampled_policy_repeats_with_its_seed_and_changes_no_text():
    torch.manual_seed(1)
    network = PolicyNetwork()
    outs = [make(RadarPolicy(network, sample=True, seed=s)).generate(PROMPT, max_new_tokens=60) for s in (1, 1, 2)]
    assert outs[0].metrics.stop_histogram == outs[1].metrics.stop_histogram
    assert outs[0].token_ids == outs[1].token_ids == outs[2].token_ids


def test_a_policy_that_is_assigned_decides_from_the_next_text_on():
    decoder = make(policy=FixedDepth(2))
    rounds = decoder.rounds(PROMPT, max_new_tokens=40)
    seen = [next(rounds), next(rounds)]
    decoder.policy = FixedDepth(4)
    seen += rounds
    assert {item.num_draft_calls for item in seen[1:]} == {2}
    assert {item.num_draft_calls for item in list(decoder.rounds(PROMPT, max_new_tokens=40))[1:]} == {4}


def test_one_policy_object_serves_two_texts_at_once():
    policy = FixedDepth(3)
    pair = [make(policy=policy) for _ in range(2)]
    seen = [item for both in zip(*(d.rounds(PROMPT, max_new_tokens=30) for d in pair), strict=True) for item in both]
    assert {item.num_draft_calls for item in seen if not item.is_prefill} == {3}


def test_the_default_tree_is_the_devices():
    rounds = make(tree=None)._rounds
    assert [rounds.tree_on(torch.device(kind)).total_tokens for kind in ("cpu", "cuda")] == [32, 60]


def test_the_default_policy_needs_no_training():
    assert isinstance(make(Threshold()).policy, Threshold)
    decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), max_length=64)
    assert isinstance(decoder.policy, Threshold)


def test_the_default_length_is_what_the_model_can_hold():
    assert RadarDecoder(tiny_target(), draft=tiny_draft()).max_length == 512
    assert AutoregressiveDecoder(tiny_target(max_position_embeddings=4096)).max_length == 2048


def test_generations_reuse_the_same_buffers():
    decoder = make()
    engine = decoder.engine

    def addresses():
        buffers = {n: t for n, t in vars(engine.steps).items() if isinstance(t, torch.Tensor) and n[0] != "_"}
        buffers |= {"keys": engine.target.cache.keys, "draft keys": engine.drafter.cache.keys}
        return {name: tensor.data_ptr() for name, tensor in buffers.items()}

    before = addresses()
    for length in (3, 60, 1, 90):
        decoder.generate([length % VOCAB] * length, max_new_tokens=30)
    assert addresses() == before
    assert len(before) == 9
