"""Summaries of rounds."""

import json
import re

from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig, prometheus_text
from radar.metrics import Round, Stopwatch, Tally, merge, summarize

ROUNDS = [
    Round([1], is_prefill=True, seconds={"prefill": 0.5}, num_prompt_tokens=9, num_reused_tokens=4),
    Round([2, 3, 4], num_draft_calls=4, accept_length=2, seconds={"draft": 0.1, "verify": 0.2}, num_draft_tokens=19),
    Round(  # cut at the limit
        [5], num_draft_calls=2, accept_length=3, seconds={"draft": 0.05, "verify": 0.2}, num_draft_tokens=11
    ),
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


def test_drafts_by_depth_and_stop():
    m = summarize([*ROUNDS, Round([6], num_draft_calls=2, num_draft_tokens=11)], 2.0)
    assert (m.num_draft_tokens, m.num_accepted_draft_tokens) == (41, 5)
    assert m.draft_acceptance_rate == 5 / 41
    assert m.acceptance_per_position == (2 / 3, 2 / 3, 1 / 3)
    assert m.acceptance_histogram_by_draft_length == {2: {0: 1, 3: 1}, 4: {2: 1}}
    assert (m.num_prompt_tokens, m.num_reused_prompt_tokens, m.num_generations) == (9, 4, 1)


def test_plain_steps_are_counted_apart():
    m = summarize([*ROUNDS, Round([6], is_fallback=True), Round([7], is_fallback=True)], 2.0)
    assert (m.num_tokens, m.num_fallback_tokens, m.num_spec_steps) == (7, 2, 2)
    assert m.stop_histogram == {2: 1, 4: 1}
    assert m.mean_acceptance_length == 1 + 5 / 2


def test_tokens_processed_on_the_host_are_noted():
    m = summarize([*ROUNDS, Round([6, 7], num_draft_calls=1, is_host_processed=True)], 2.0)
    assert m.num_host_processed_tokens == 2


def test_merge_is_a_ratio_of_sums():
    short = summarize(ROUNDS[:2], 1.0, "eager")
    long = summarize(ROUNDS, 2.0, "eager")
    m = merge([short, long])
    assert m.num_tokens == 9
    assert m.tokens_per_second == 9 / 3.0
    assert m.mean_acceptance_length == 1 + 7 / 3
    assert m.stop_histogram == {2: 1, 4: 2}


def test_merging_summaries_is_summing_rounds():
    plain = [Round([8], is_fallback=True, seconds={"verify": 0.25})]
    parts = [summarize(ROUNDS, 1.0, "a"), summarize(ROUNDS[:2] + plain, 2.0, "a")]
    assert merge(parts) == tally_of(ROUNDS + ROUNDS[:2] + plain, generations=2, seconds=3.0)


def tally_of(rounds, generations, seconds):
    tally = Tally()
    tally.num_generations, tally.seconds = generations, seconds
    for item in rounds:
        tally.add(item)
    return tally.summary("a")


def test_a_decoder_keeps_a_running_total():
    decoder = RadarDecoder(tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), max_length=128,
                           tree=TreeConfig(total_tokens=20, max_calls=4), engine="eager", fallback=False)  # fmt: skip
    runs = [decoder.generate([1, 2, i], max_new_tokens=20).metrics for i in range(3)]
    cancelled = decoder.rounds([1, 2, 3])
    extra = [next(cancelled), next(cancelled)]
    total, expected = decoder.metrics, merge([*runs, summarize(extra, 0.0, "eager")])
    for name in ("num_tokens", "num_spec_steps", "num_draft_calls", "num_draft_tokens", "stop_histogram",
                 "acceptance_histogram_by_draft_length", "num_prompt_tokens", "num_generations", "engine"):  # fmt: skip
        assert getattr(total, name) == getattr(expected, name), name
    assert total.num_generations == 4
    assert total.num_draft_tokens == 19 * total.num_spec_steps
    assert 0 < total.seconds <= sum(run.seconds for run in runs) + 1


def test_json():
    m = summarize(ROUNDS, 2.0, "eager")
    found = json.loads(m.to_json())
    assert found["acceptance_histogram_by_draft_length"] == {"2": {"3": 1}, "4": {"2": 1}}
    assert found["acceptance_per_position"] == [1.0, 1.0, 0.5]
    assert set(found) == set(m.to_dict())


def test_prometheus_text_is_well_formed_and_complete():
    text = prometheus_text(summarize([*ROUNDS, Round([6], is_fallback=True)], 2.0, "graphs, host loop"))
    assert text.endswith("\n")
    sample = re.compile(r'(radar_[a-z_]+_total)\{([a-z_]+="[^"]*",?)+\} ([0-9.e-]+)')
    values, typed, helped = {}, set(), set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped.add(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line.split()[2] in helped
            assert line.split()[3] == "counter"
            typed.add(line.split()[2])
        else:
            match = sample.fullmatch(line)
            assert match, line
            assert match[1] in typed
            assert line not in values
            values[line.rsplit(" ", 1)[0]] = float(match[3])
    engine = 'engine="graphs, host loop"'
    assert values[f"radar_generation_tokens_total{{{engine}}}"] == 6
    assert values[f"radar_fallback_tokens_total{{{engine}}}"] == 1
    assert values[f"radar_generation_seconds_total{{{engine}}}"] == 2.0
    assert values[f'radar_stops_total{{{engine},draft_calls="4"}}'] == 1
    assert values[f'radar_part_seconds_total{{{engine},part="prefill"}}'] == 0.5
    family = "radar_accepted_draft_tokens_per_position_total"
    per_position = [values[f'{family}{{{engine},position="{p}"}}'] for p in (1, 2, 3)]
    assert per_position == [2, 2, 1]
    assert sum(per_position) == values[f"radar_accepted_draft_tokens_total{{{engine}}}"]
    assert typed == helped
    assert prometheus_text(merge([])).count("# TYPE") == 11  # nothing decoded: no empty families


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
