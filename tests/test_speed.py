"""The statistics of an end-to-end comparison, by hand."""

import itertools
import math

import pytest
import torch
from measured_runs import ISSUE_KEYS, full_runs, predictions, run

from bench.lab.speed import (
    AUTOREGRESSIVE,
    FLAT_KEYS,
    cells_of,
    cost_errors,
    equal_texts,
    flat,
    geometric_mean,
    over,
    summarise,
)  # fmt: skip
from radar.train.costs import CostTable


def test_speeds_are_ratios_of_sums():
    runs = [
        run("radar", 0, 100, 1.0), run("radar", 1, 20, 3.0),  # 120 / 4 = 30
        run("eagle3", 0, 100, 2.0), run("eagle3", 1, 20, 4.0),  # 120 / 6 = 20
    ]  # fmt: skip
    found = over([runs], "radar", "eagle3")
    assert found.value == pytest.approx(1.5)
    # two prompts: a resample holds the first twice (2), both (1.5) or the second twice (4 / 3)
    assert found.low == pytest.approx(4 / 3)
    assert found.high == pytest.approx(2.0)


def test_the_interval_is_that_of_all_resamples():
    tokens, ours, theirs = (100, 20, 60, 10), (1.0, 3.0, 2.0, 1.0), (2.0, 4.0, 2.2, 3.0)
    runs = [run("radar", p, tokens[p], ours[p]) for p in range(4)]
    runs += [run("eagle3", p, tokens[p], theirs[p]) for p in range(4)]
    resamples = itertools.product(range(4), repeat=4)  # tokens are the same, so they cancel
    every = [sum(theirs[p] for p in drawn) / sum(ours[p] for p in drawn) for drawn in resamples]
    low, high = torch.quantile(torch.tensor(every), torch.tensor([0.025, 0.975])).tolist()
    found = over([runs], "radar", "eagle3")
    assert found.low == pytest.approx(low, rel=0.03)
    assert found.high == pytest.approx(high, rel=0.03)


def test_a_ratio_that_no_prompt_changes_has_no_interval():
    runs = [run(name, p, 10 * (p + 1), t * (p + 1)) for p in range(5) for name, t in (("radar", 1.0), ("eagle3", 3.0))]
    found = over([runs], "radar", "eagle3")
    assert found == pytest.approx((3.0, 3.0, 3.0))


def test_cells_count_by_their_geometric_mean():
    fast = [run(name, p, 10, t) for p in range(3) for name, t in (("radar", 1.0), ("eagle3", 4.0))]
    slow = [run(name, p, 10, t) for p in range(3) for name, t in (("radar", 1.0), ("eagle3", 1.0))]
    assert over([fast, slow], "radar", "eagle3").value == pytest.approx(2.0)
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2.0)


def test_repeats_of_a_prompt_are_one_draw():
    """Repeats add to their prompt's sums: a second one of the same prompt narrows nothing."""
    places = [(p, r, name, t) for p in range(4) for r in range(2) for name, t in (("radar", 1), ("eagle3", 3))]
    runs = [run(name, p, 10, t + p, repeat=r) for p, r, name, t in places]
    once = [one for one in runs if one["repeat"] == 0]
    assert over([runs], "radar", "eagle3") == pytest.approx(over([once], "radar", "eagle3"))


def test_a_prompt_that_was_cut_off_is_left_out():
    runs = [run("radar", 0, 10, 1.0), run("eagle3", 0, 10, 1.0), run("radar", 1, 10, 1.0)]
    (kept,) = cells_of(runs).values()
    assert {(one["method"], one["prompt"]) for one in kept} == {("radar", 0), ("eagle3", 0)}


def test_texts_that_parted_are_left_out_of_the_second_ratio():
    """Prompt 0 is the same text, prompt 1 is not, prompt 2's second repeat is; RADAR is 2, 10 and 4 times as fast."""
    places = [(0, 0, "same"), (1, 0, "other"), (2, 0, "other"), (2, 1, "same")]
    seconds = {(0, 0): 1.0, (1, 0): 0.2, (2, 0): 0.2, (2, 1): 0.5}
    runs = []
    for prompt, repeat, text in places:
        runs.append(run("radar", prompt, 10, seconds[prompt, repeat], repeat=repeat) | {"text": text})
        runs.append(run("eagle3", prompt, 10, 2.0, repeat=repeat))
    kept = equal_texts(runs, "radar", "eagle3")
    assert [(one["prompt"], one["repeat"]) for one in kept] == [(0, 0), (0, 0), (2, 1), (2, 1)]
    plain = [run(AUTOREGRESSIVE, prompt, 10, 8.0) for prompt in range(3)]
    (cell,) = summarise(runs + plain, {}, {})["cells"].values()
    found = cell["radar_over_in_equal_texts"]
    assert list(found) == ["eagle3"]
    assert found["eagle3"]["value"] == pytest.approx(4.0 / 1.5)
    assert (found["eagle3"]["texts"], found["eagle3"]["cells"]) == (2, 1)


def test_a_cell_whose_texts_all_parted_says_so():
    parted = [run("radar", 0, 10, 1.0) | {"text": "other"}, run("eagle3", 0, 10, 1.0)]
    same = [run(name, 0, 10, t, task="mbpp") for name, t in (("radar", 1.0), ("eagle3", 3.0))]
    plain = [run(AUTOREGRESSIVE, 0, 10, 8.0, task=task) for task in ("gsm8k", "mbpp")]
    summary = summarise(parted + same + plain, {}, {})
    assert summary["cells"]["a gsm8k T=0"]["radar_over_in_equal_texts"] == {}
    found = summary["overall"]["0"]["radar_over_in_equal_texts"]["eagle3"]
    assert (found["cells"], found["value"]) == (1, pytest.approx(3.0))


def test_a_run_stopped_in_a_cells_first_prompt_is_summed_up_without_it():
    """gsm8k has its prompts; of mbpp's first one two methods are there, and RADAR's turn never came."""
    runs = [one for one in full_runs() if one["task"] == "gsm8k"]
    cut = [run(AUTOREGRESSIVE, 0, 60, 12.0, task="mbpp"), run("eagle3", 0, 60, 5.0, task="mbpp")]
    summary = summarise(runs + cut, {"a": {"static": {"tokens_per_second": 2.0}}}, {})
    assert list(summary["cells"]) == ["a gsm8k T=0"]
    assert summarise(cut, {}, {}) == {"cells": {}, "overall": {}}


def test_replay_is_judged_by_the_rounds():
    """Without the prompt's pass and its token."""
    runs = [run("radar", 0, 41, 4.5), run("eagle3", 0, 61, 8.5), run(AUTOREGRESSIVE, 0, 61, 20.0)]
    (cell,) = summarise(runs, {}, predictions())["cells"].values()
    measured = (40 / 4.0) / (60 / 8.0)
    assert cell["replay"]["error"] == pytest.approx(126 / 100 / measured - 1)


def test_plain_decoding_counts_once():
    """Measured in the first repeat alone; a repeat without it is whole, a prompt without it is not."""
    runs = [run(name, p, 10, 2.0, repeat=r) for p in range(2) for r in range(2) for name in ("radar", "eagle3")]
    plain = [run(AUTOREGRESSIVE, 0, 10, 8.0)]
    (kept,) = cells_of(runs + plain).values()
    assert {(one["prompt"], one["repeat"]) for one in kept} == {(0, 0), (0, 1)}
    assert over([kept], "radar", AUTOREGRESSIVE).value == pytest.approx(4.0)
    (cell,) = summarise(runs + plain, {}, {})["cells"].values()
    assert (cell["repeats"], cell["texts"], cell["texts_identical"]) == (2, 1, 1)  # all methods wrote once


def test_the_flat_summary_by_hand():
    generated = {"a": {"dynamic": {"tokens_per_second": 2.0}, "static": {"tokens_per_second": 3.0}}}
    summary = summarise(full_runs(), generated, predictions())
    short = flat(summary, commit="abc", command="python -m bench.end_to_end")
    assert list(short) == list(FLAT_KEYS) == ISSUE_KEYS
    root = math.sqrt(1 / 0.75)  # one of the two cells is that much faster
    assert short["radar_over_ar_min"] == pytest.approx(3.0)
    assert short["radar_over_ar_max"] == pytest.approx(4.0)
    assert short["radar_over_eagle3_geomean"] == pytest.approx(1.25 * root)
    assert short["radar_over_best_fixed_geomean"] == pytest.approx(1.2 * root)
    assert short["radar_over_published_geomean"] == pytest.approx(1.1 * root)
    assert short["radar_over_threshold_geomean"] == pytest.approx(1.025 * root)
    assert short["radar_over_generate_geomean"] == pytest.approx(math.sqrt(15 / 3 * 20 / 3))  # over the faster cache
    assert short["draft_calls_change"] == pytest.approx(24 / 32 - 1)
    assert short["acceptance_change"] == 0.0
    assert short["oracle_gap_closed"] == pytest.approx((125 / 105 - 1) / (131.25 / 105 - 1))
    measured = (5.0 - 0.5) / (4.0 * 0.75 - 0.5)  # of mbpp, where replay is furthest off; rounds, no prompt's pass
    assert short["replay_error"] == pytest.approx(abs(1.26 / measured - 1))
    assert short["commit"] == "abc"
    cell = summary["cells"]["a gsm8k T=0"]
    assert (cell["texts"], cell["texts_identical"], cell["prompts"]) == (3, 3, 3)
    assert cell["methods"]["radar"]["stop_histogram"] == {"2": 12}


def test_cost_errors_by_hand():
    table = CostTable(
        draft_call_seconds=(1.0, 2.0, 4.0), nodes=(32, 60), contexts=(100, 200),
        verify_seconds=((8.0, 8.0), (10.0, 30.0)),
        decision_seconds=0.5, rest_seconds=0.25, device="card", pair="a",
    )  # fmt: skip
    about = {"tokens": 20, "task": "mbpp", "temperature": 0.0, "prompt_tokens": 140, "prefill_seconds": 5.0}
    about |= {"nodes": 60, "max_calls": 3}
    small = 2 * (1 + 8 + 0.25) + (3 + 8 + 0.25)  # two rounds of one call, one of two, nothing decided
    runs = [
        {**about, "method": "eagle3", "nodes": 32, "stops": {"1": 2, "2": 1}, "seconds": 5 + small / 1.1},
        {
            **about,
            "method": "radar",
            "stops": {"1": 1},
            "seconds": 5 + 1 + 0.5 + 20 + 0.25,
        },  # in the middle: context 150
        {**about, "method": AUTOREGRESSIVE, "stops": {"0": 19}, "seconds": 99.0},
    ]
    found = cost_errors(runs, table)
    assert found == {"0": {"eagle3": pytest.approx(0.1), "radar": pytest.approx(0.0)}}


def test_what_was_not_measured_is_null():
    short = flat(summarise(full_runs(), {}, {}), commit="abc", command="")
    assert short["radar_over_generate_geomean"] is short["oracle_gap_closed"] is short["replay_error"] is None
    assert short["radar_over_eagle3_geomean"] > 1


def test_other_text_is_counted():
    runs = full_runs()
    runs[3]["text"] = "another"
    assert summarise(runs, {}, {})["cells"]["a gsm8k T=0"]["texts_identical"] == 2
