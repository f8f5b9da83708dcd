"""Summaries of rounds."""

import json

from radar.metrics import Round, Stopwatch, merge, summarize

ROUNDS = [
    Round([1], is_prefill=True, seconds={"prefill": 0.5}),
    Round([2, 3, 4], num_draft_calls=4, accept_length=2, seconds={"draft": 0.1, "verify": 0.2}),
    Round([5], num_draft_calls=2, accept_length=3, seconds={"draft": 0.05, "verify": 0.2}),  # cut at the limit
]


def test_summary():
    m = summarize(ROUNDS, 2.0, "eager")
    assert (m.num_tokens, m.num_spec_steps, m.num_draft_calls, m.num_accepted_draft_tokens) == (5, 2, 6, 5)
    assert m.mean_acceptance_length == 1 + 5 / 2
    assert m.draft_calls_per_round == 3
    assert m.stop_histogram == {2: 1, 4: 1}
    assert m.acceptance_histogram == {2: 1, 3: 1}
    assert m.tokens_per_second == 2.5
    assert {k: round(v, 6) for k, v in m.seconds_by_part.items()} == {"prefill": 0.5, "draft": 0.15, "verify": 0.4}
    assert json.loads(json.dumps(m.to_dict()))["engine"] == "eager"


def test_merge_is_a_ratio_of_sums():
    short = summarize(ROUNDS[:2], 1.0, "eager")
    long = summarize(ROUNDS, 2.0, "eager")
    m = merge([short, long])
    assert m.num_tokens == 9
    assert m.tokens_per_second == 9 / 3.0
    assert m.mean_acceptance_length == 1 + 7 / 3
    assert m.stop_histogram == {2: 1, 4: 2}


def test_nothing_decoded_divides_by_nothing():
    m = summarize(ROUNDS[:1], 0.0)
    assert (m.mean_acceptance_length, m.draft_calls_per_round, m.tokens_per_second) == (0.0, 0.0, 0.0)
    assert merge([]).num_tokens == 0


def test_stopwatch_adds_up_parts():
    watch = Stopwatch()
    for part in ("draft", "policy", "draft"):
        watch.lap(part)
    assert set(watch.seconds) == {"draft", "policy"}
    assert all(value >= 0 for value in watch.seconds.values())
