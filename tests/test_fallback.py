"""Never slower: the choice between rounds and plain steps, and that neither the text nor the drafts change by it."""

import itertools
import time

import pytest
import torch
from fake_graphs import with_fake_graphs
from fakes import hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.engine.fallback import FIRST, LONGEST, PROBE, WINDOW, Fallback

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREE = TreeConfig(total_tokens=20, max_calls=4)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def run(choice, rounds, drafted=(3, 3.0), plain=1.0):
    """Feed fake times of rounds (tokens, seconds) and plain steps (seconds): what was chosen, tokens and seconds."""
    kinds, tokens, seconds = [], 0, 0.0
    for _ in range(rounds):
        kinds.append(choice.drafts)
        got, took = drafted if choice.drafts else (1, plain)
        choice.record(got, took)
        tokens, seconds = tokens + got, seconds + took
    return kinds, tokens, seconds


def probes(kinds, kind):
    """Lengths of the runs of the other kind between two runs of `kind`."""
    runs = [(key, len(list(group))) for key, group in itertools.groupby(kinds)]
    assert all(length == PROBE for key, length in runs[1:-1] if key is kind)
    return [length for key, length in runs if key is not kind]


def test_bad_drafts_are_given_up_after_the_first_probe():
    kinds, tokens, seconds = run(Fallback(), 10_000, drafted=(1, 5.0))
    assert all(kinds[:FIRST])
    assert not any(kinds[FIRST : FIRST + PROBE + FIRST])
    between = probes(kinds[FIRST:], True)
    assert between[0] == PROBE + FIRST
    assert between[1:4] == [2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert max(between) == LONGEST
    assert tokens / seconds > 0.92  # plain: 1.0; drafting: 0.2


def test_good_drafts_cost_almost_nothing_to_confirm():
    kinds, tokens, seconds = run(Fallback(), 10_000, drafted=(4, 2.0))
    between = probes(kinds, False)
    assert between[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert tokens / seconds > 2 * 0.995


def test_it_changes_its_mind_both_ways():
    choice = Fallback()
    run(choice, 500, drafted=(4, 2.0))
    kinds, _, _ = run(choice, 200, drafted=(1, 2.0))  # an odd domain: no probe is waited for
    assert kinds[: WINDOW + PROBE].count(True) <= WINDOW
    assert kinds[60:100].count(True) <= PROBE
    kinds, _, _ = run(choice, 200, drafted=(4, 2.0))
    assert kinds[-100:].count(True) >= 100 - 2 * PROBE


def test_a_plain_step_whose_time_is_known_is_not_probed_soon():
    choice = Fallback()
    choice.expect(1.0)
    kinds, _, _ = run(choice, LONGEST + PROBE, drafted=(4, 2.0))
    assert kinds == [True] * LONGEST + [False] * PROBE
    choice = Fallback()
    choice.expect(1.0)
    kinds, _, _ = run(choice, 100, drafted=(1, 2.0))  # and it is taken as soon as the rounds are known
    assert kinds[:WINDOW] == [True] * WINDOW
    assert kinds[WINDOW:].count(True) <= 2 * PROBE


def test_another_text_is_looked_at_soon():
    choice = Fallback()
    run(choice, 4000, drafted=(1, 5.0))
    choice.begin_text()
    kinds, _, _ = run(choice, 200, drafted=(4, 2.0))
    assert kinds[FIRST + PROBE + 1 :].count(False) <= 2 * PROBE  # those that confirm
    choice.forget_rounds()
    assert choice.drafts


def test_what_is_equal_within_noise_does_not_flutter():
    choice = Fallback()
    kinds, _, _ = run(choice, 5000, drafted=(2, 2.02))
    assert kinds.count(False) == PROBE * (len(probes(kinds, False)) - kinds[-1])


def test_a_round_that_was_launched_before_a_change_of_mind_says_nothing():
    """Kinds are chosen a round ahead, and no time of one kind is taken for the other's."""
    choice, kinds = Fallback(), []
    launched = choice.drafts
    for _ in range(3000):
        following = choice.drafts
        choice.record(1, 5.0 if launched else 1.0, drafted=launched)
        assert (choice._drafted.value or 0.2, choice._plain.value or 1.0) == pytest.approx((0.2, 1.0))
        kinds.append(launched)
        launched = following
    assert kinds[FIRST + PROBE :].count(True) < 100


def test_without_times_nothing_is_concluded():
    choice = Fallback()
    for _ in range(1000):
        choice.record(1, None)
    assert choice._pays


class Script(Fallback):
    """Drafts where a pattern says so, and keeps what it was told."""

    def __init__(self, pattern):
        self.pattern, self.at, self.told = pattern, 0, []

    @property
    def drafts(self):
        return self.pattern[self.at % len(self.pattern)] == "d"

    def record(self, tokens, seconds):
        self.told.append((self.drafts, tokens, seconds))
        self.at += 1

    def begin_text(self):
        self.at = 0

    forget_rounds = begin_text


def decoder(fallback=None, policy=None, **options):
    ours = RadarDecoder(
        options.pop("model", None) or tiny_target(), draft=tiny_draft(), policy=policy or FixedDepth(4), tree=TREE,
        max_length=200, **({"engine": "eager"} | options),
    )  # fmt: skip
    ours.engine.fallback = fallback
    return ours


def graphed(monkeypatch, fallback=None, **options):
    ours = decoder(**options)
    if ours.engine.target.device.type == "cuda":
        pytest.skip("a real graph engine is tested instead")
    return with_fake_graphs(monkeypatch, ours, fallback)


PATTERNS = ["p", "dp", "pd", "ddppp", "ppppd", "pppppd", "d" + 11 * "p", 23 * "p" + "d"]
SETTINGS = [None, SamplingParams(temperature=1.0, seed=3), SamplingParams(repetition_penalty=1.3)]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "sampling"), zip(PATTERNS, itertools.cycle(SETTINGS), strict=False), ids=str)
def test_the_text_is_the_same_whatever_is_chosen(pattern, sampling, monkeypatch):
    plain = AutoregressiveDecoder(tiny_target(), max_length=200)
    expected = plain.generate(PROMPT, max_new_tokens=70, sampling=sampling).token_ids
    for ours in (decoder(Script(pattern)), graphed(monkeypatch, Script(pattern))):
        out = ours.generate(PROMPT, max_new_tokens=70, sampling=sampling)
        assert out.token_ids == expected
        told = ours.engine.fallback.told
        assert out.metrics.num_fallback_tokens == sum(not drafts for drafts, _, _ in told)
        assert out.metrics.num_spec_steps == sum(drafts for drafts, _, _ in told)
        assert sum(tokens for _, tokens, _ in told) >= 69
        assert all(seconds > 0 for _, _, seconds in told)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS[3:])
def test_the_drafts_are_those_of_a_decoder_that_never_stepped_plainly(pattern, monkeypatch):
    """The draft's cache is caught up with: the same pairs, so the same trees are accepted from the same roots."""
    reference = decoder(policy=Threshold(0.2))
    accepted, text = {}, list(PROMPT)
    for item in reference.rounds(PROMPT, max_new_tokens=110):
        accepted[len(text)] = item.tokens
        text.extend(item.tokens)
    for ours in (
        decoder(Script(pattern), policy=Threshold(0.2)),
        graphed(monkeypatch, Script(pattern), policy=Threshold(0.2)),
    ):
        length, compared = len(PROMPT), 0
        for item in ours.rounds(PROMPT, max_new_tokens=100):
            if not item.is_fallback and not item.is_prefill and length in accepted:
                assert item.tokens == accepted[length][: len(item.tokens)]
                compared += 1
            length += len(item.tokens)
        rows = len(ours.engine.admission.prefix.ids) - 1 - ours.engine.admission.prefix.pending
        assert rows > 50
        ours_keys, keys = (d.engine.drafter.cache.keys[:, :, :, :rows] for d in (ours, reference))
        torch.testing.assert_close(ours_keys, keys, rtol=1e-4, atol=1e-5)
        assert compared >= 2


def test_a_plain_step_without_its_pair_would_be_seen(monkeypatch):
    """The comparison of the drafts has teeth."""
    ours, reference = decoder(Script("ddppp")), decoder()
    reference.generate(PROMPT, max_new_tokens=110)
    plain = ours.engine.steps.plain

    def forgets():
        token = plain()
        ours.engine.steps.taps.zero_()
        return token

    monkeypatch.setattr(ours.engine.steps, "plain", forgets)
    ours.generate(PROMPT, max_new_tokens=100)
    rows = len(ours.engine.admission.prefix.ids) - 10
    keys = [d.engine.drafter.cache.keys[:, :, :, :rows] for d in (ours, reference)]
    assert not torch.allclose(*keys, rtol=1e-3, atol=1e-3)


def test_slow_drafts_are_left_by_the_clock(monkeypatch):
    ours = decoder(Fallback(), policy=FixedDepth(2))
    begin = ours.engine.steps.begin

    def slow():
        time.sleep(0.02)
        begin()

    monkeypatch.setattr(ours.engine.steps, "begin", slow)
    out = ours.generate(PROMPT, max_new_tokens=190)
    assert out.token_ids == hf_greedy(tiny_target(), PROMPT, 190)
    assert out.metrics.num_spec_steps <= FIRST + 2 * PROBE
    assert out.metrics.num_fallback_tokens > 60
    assert ours.metrics.num_fallback_tokens == out.metrics.num_fallback_tokens


def test_it_is_on_unless_refused():
    options = {"draft": tiny_draft(), "max_length": 64}
    first, second = (RadarDecoder(tiny_target(), **options).engine.fallback for _ in range(2))
    assert isinstance(first, Fallback)
    assert isinstance(second, Fallback)
    assert first is not second  # what one decoder measured says nothing about another's rounds
    assert RadarDecoder(tiny_target(), **options, fallback=False).engine.fallback is None
    embedded = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=64)
    assert isinstance(embedded.engine.fallback, Fallback)


def test_a_policy_set_in_between_does_not_confuse_what_was_launched(monkeypatch):
    ours = graphed(monkeypatch, Fallback())
    expected = hf_greedy(tiny_target(), PROMPT, 60)
    tokens = []
    for index, item in enumerate(ours.rounds(PROMPT, max_new_tokens=60)):
        tokens += item.tokens
        if index == 2:
            ours.engine.fallback._pays = False  # the next round is launched already, those after it are plain
        if index in (5, 9):
            ours.policy = FixedDepth(1 + index % 4)
    assert tokens == expected


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_another_policy_counts_from_the_next_text_on_whoever_drives_it(engine, monkeypatch):
    """What is known of the old one's rounds is void then, once; the host drives the text with processors."""
    ours = decoder() if engine == "eager" else graphed(monkeypatch)
    ours.engine.fallback, forgotten = Fallback(), []
    monkeypatch.setattr(ours.engine.fallback, "forget_rounds", lambda: forgotten.append(1))
    policies, same = [ours.policy, FixedDepth(1), FixedDepth(2)], [lambda ids, scores: scores]
    for count, policy in enumerate(policies):
        ours.policy = policy
        assert len(forgotten) == max(0, count - 1)
        for options in ({}, {"logits_processor": same}):
            rounds = list(ours.rounds(PROMPT, max_new_tokens=20, **options))[1:]
            assert {item.num_draft_calls for item in rounds if not item.is_fallback} == {policy.calls}
        assert len(forgotten) == count


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS)
def test_graphs_of_plain_steps_say_the_same(pattern):
    model = tiny_target()
    expected = hf_greedy(model, PROMPT, 70)
    ours = RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(4), tree=TREE, max_length=200)
    plain = ours.engine._plain
    ours.engine.fallback = Script(pattern)
    for _ in range(3):
        assert ours.generate(PROMPT, max_new_tokens=70).token_ids == expected
    eager = decoder(Script(pattern), model=model)
    ours_out, theirs = (d.generate(PROMPT, max_new_tokens=70) for d in (ours, eager))
    assert ours_out.metrics.acceptance_histogram == theirs.metrics.acceptance_histogram
    assert ours.engine._plain is plain
