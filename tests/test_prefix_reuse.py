"""A prompt that goes on from an earlier text runs only what is new, and nothing else changes by it."""

import pytest
import torch
from fake_graphs import with_fake_graphs
from fakes import VOCAB, tiny_draft, tiny_target
from test_fallback import Script

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.engine.prefix_cache import PrefixCache
from radar.tools.profile import profile_round

TREE = TreeConfig(total_tokens=20, max_calls=4)
FIRST = [(7 * i + i * i) % VOCAB for i in range(90)]  # longer than a chunk on a CPU
MORE = [1, 2, 3, 2, 1]


def eager(fallback=None):
    ours = RadarDecoder(tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, max_length=400,
                        engine="eager")  # fmt: skip
    ours.engine.fallback = fallback
    return ours


@pytest.fixture(params=["eager", "plain steps", "graph", "autoregressive"])
def make(request, monkeypatch):
    """Makes decoders of one kind; the graph engine's graphs are Python where there is no GPU."""

    def build():
        if request.param == "autoregressive":
            return AutoregressiveDecoder(tiny_target(), max_length=400)
        if request.param != "graph":
            return eager(Script("dpppp") if request.param == "plain steps" else None)
        if torch.cuda.is_available():
            return RadarDecoder(tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, max_length=400,
                                fallback=False)  # fmt: skip
        return with_fake_graphs(monkeypatch, eager())

    return build


def generate(decoder, prompt, **options):
    out = decoder.generate(prompt, **{"max_new_tokens": 18} | options)
    return out, out.metrics.num_reused_prompt_tokens


SAMPLING = [{}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.4}]


@pytest.mark.parametrize("options", SAMPLING, ids=["greedy", "sampled with a penalty"])
def test_a_conversation_says_what_fresh_decoders_say(make, options):
    decoder, text = make(), list(FIRST)
    for turn in range(3):
        out, reused = generate(decoder, text, reuse_prefix=True, **options)
        expected, none = generate(make(), text, **options)
        assert out.token_ids == expected.token_ids
        assert out.metrics.stop_histogram == expected.metrics.stop_histogram
        assert out.metrics.acceptance_histogram == expected.metrics.acceptance_histogram  # the drafts are the same
        assert none == 0
        assert out.metrics.num_prompt_tokens == len(text)
        if turn:
            assert len(text) - 9 - len(MORE) <= reused < len(text) - len(MORE)
        text += [*out.token_ids, *MORE]
    assert decoder.metrics.num_reused_prompt_tokens > 2 * 90


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 65, 105])
def test_a_prompt_may_leave_the_text_anywhere(make, cut):
    decoder = make()
    text = FIRST + generate(decoder, FIRST)[0].token_ids
    for prompt in (text[:cut], [*text[: cut - 1], (text[cut - 1] + 1) % VOCAB, *MORE]):
        out, reused = generate(decoder, prompt, reuse_prefix=True)
        assert out.token_ids == generate(make(), prompt)[0].token_ids
        assert reused <= cut - 1
        assert reused >= min(cut, 103) - 6
        generate(decoder, FIRST)


def test_the_same_prompt_again_runs_one_token(make):
    decoder = make()
    first, _ = generate(decoder, FIRST)
    again, reused = generate(decoder, FIRST, reuse_prefix=True)
    assert (again.token_ids, reused) == (first.token_ids, len(FIRST) - 1)


def test_without_asking_nothing_is_reused(make):
    decoder = make()
    generate(decoder, FIRST)
    assert generate(decoder, FIRST)[1] == 0


def test_a_cancelled_stream_leaves_what_it_held(make):
    decoder = make()
    rounds = decoder.rounds(FIRST, max_new_tokens=60)
    text = list(FIRST)
    for _ in range(4):
        text += next(rounds).tokens
    rounds.close()  # a round may be under way
    out, reused = generate(decoder, text + MORE, reuse_prefix=True)
    assert out.token_ids == generate(make(), text + MORE)[0].token_ids
    assert reused >= len(text) - 6


class Interrupt:
    """A criterion that is interrupted like a user's keyboard does it, at a given call."""

    def __init__(self, at):
        self.left = at

    def __call__(self, ids, scores):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return False


@pytest.mark.parametrize("at", [1, 7])
def test_an_interrupt_leaves_a_usable_decoder(make, at):
    decoder = make()
    with pytest.raises(KeyboardInterrupt):
        decoder.generate(FIRST, stopping_criteria=[Interrupt(at)], max_new_tokens=50)
    for reuse in (True, False):
        out, _ = generate(decoder, FIRST + MORE, reuse_prefix=reuse)
        assert out.token_ids == generate(make(), FIRST + MORE)[0].token_ids


def test_an_interrupt_in_the_prompts_pass(make, monkeypatch):
    decoder = make()
    generate(decoder, FIRST)
    prefill = decoder.engine.admission.prefill
    with monkeypatch.context() as patch:

        def interrupted(*args, **kwargs):
            prefill.target.cache.keys[:, :, :, kwargs["start"] + 1 :] += 1.0
            raise KeyboardInterrupt

        patch.setattr(prefill, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.generate(FIRST[:40] + MORE, reuse_prefix=True)
    out, reused = generate(decoder, FIRST + MORE, reuse_prefix=True)
    assert out.token_ids == generate(make(), FIRST + MORE)[0].token_ids
    assert reused <= 39


def test_who_uses_the_caches_for_something_else_is_noticed():
    decoder = eager()
    generate(decoder, FIRST)
    with torch.inference_mode():
        profile_round(decoder.engine, prefix=20, calls=2, repeats=1)
    out, reused = generate(decoder, FIRST + MORE, reuse_prefix=True)
    assert out.token_ids == generate(eager(), FIRST + MORE)[0].token_ids
    assert reused == 0


def test_another_policys_graphs_void_what_was_held(monkeypatch):
    if torch.cuda.is_available():
        decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), tree=TREE, max_length=400)
    else:
        decoder = with_fake_graphs(monkeypatch, eager())
    generate(decoder, [1, 2], max_new_tokens=1)  # as few rows as the warm-up of a capture leaves
    decoder.policy = FixedDepth(2)
    out, reused = generate(decoder, [1, 2, *MORE], reuse_prefix=True)
    assert reused == 0
    assert out.token_ids == generate(eager(), [1, 2, *MORE])[0].token_ids


def test_one_row_too_many_would_be_seen(make, monkeypatch):
    """The comparisons have teeth: a row that is kept wrongly changes text or drafts."""
    begin = PrefixCache.begin

    def one_more(self, prompt, cache, *, reuse):
        rows = begin(self, prompt, cache, reuse=reuse)
        return min(rows + 2, len(prompt) - 1) if rows else 0

    decoder = make()
    generate(decoder, FIRST)
    prompt = [*FIRST[:60], 1 + FIRST[60] % 8, 2, 3]
    monkeypatch.setattr(PrefixCache, "begin", one_more)
    out, _ = generate(decoder, prompt, reuse_prefix=True)
    monkeypatch.undo()
    expected, _ = generate(eager(), prompt)
    assert out.token_ids != expected.token_ids


class ChatTokenizer:
    """Token t reads as `t `; a message is its role's token, its words and an end."""

    chat_template = "a template"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [0] * add_special_tokens + [int(word) for word in text.split()]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(f"{i} " for i in ids)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (True, True)  # text is taken too
        marks = {"user": 15, "assistant": 14}
        return "".join(f"{marks[m['role']]} {m['content']} 16 " for m in messages) + "14 "


def test_messages_go_through_the_template_and_reuse_the_conversation():
    decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), tree=TREE, max_length=400, tokenizer=ChatTokenizer())
    messages = [{"role": "user", "content": "5 3 2 8 5 3"}]
    first = decoder.generate(messages, max_new_tokens=20)
    assert first.token_ids == decoder.generate([15, 5, 3, 2, 8, 5, 3, 16, 14], max_new_tokens=20).token_ids
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "1 2"}]
    stream = decoder.stream(messages, max_new_tokens=20)
    text = "".join(stream)
    fresh = decoder.generate(decoder.encode(messages), max_new_tokens=20)
    assert text == fresh.text
    assert fresh.metrics.num_reused_prompt_tokens == 0
    assert 23 <= stream.output.metrics.num_reused_prompt_tokens < 9 + 20
    decoder.tokenizer = type("NoTemplate", (), {"chat_template": None})()
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        decoder.generate(messages)


def test_a_closed_stream_says_so():
    decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), tree=TREE, max_length=400, tokenizer=ChatTokenizer())
    with decoder.stream(FIRST, max_new_tokens=50) as stream:
        next(stream)
    assert stream.output.finish_reason == "cancelled"
    assert 0 < len(stream.output.token_ids) < 50
    assert list(stream) == []
    assert decoder.metrics.num_generations == 1


def test_sampling_history_is_the_whole_prompt(make):
    """A penalty sees the reused tokens too."""
    sampling = SamplingParams(repetition_penalty=2.0)
    decoder = make()
    generate(decoder, FIRST)
    out, reused = generate(decoder, FIRST + MORE, sampling=sampling, reuse_prefix=True)
    assert reused > 80
    assert out.token_ids == generate(make(), FIRST + MORE, sampling=sampling)[0].token_ids
