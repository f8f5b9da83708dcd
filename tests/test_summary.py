"""What runs say of a comparison, by hand."""

import math

import pytest
from measured_runs import full_runs, predictions, run

from bench.runs import AUTOREGRESSIVE
from bench.summary import cost_errors, summarise
from radar.tools.costs import CostTable


def test_the_summary_by_hand():
    generated = {"a": {"dynamic": {"tokens_per_second": 2.0}, "static": {"tokens_per_second": 3.0}}}
    summary = summarise(full_runs(), generated, predictions())
    overall = summary["overall"]["0"]
    root = math.sqrt(1 / 0.75)  # one of the two cells is that much faster
    assert [cell["radar_over"][AUTOREGRESSIVE]["value"] for cell in summary["cells"].values()] == pytest.approx(
        [3.0, 4.0]
    )
    wanted = {"eagle3": 1.25, "best_fixed": 1.2, "published": 1.1, "threshold": 1.025, AUTOREGRESSIVE: 3.0}
    assert {name: one["value"] for name, one in overall["radar_over"].items()} == pytest.approx(
        {name: value * root for name, value in wanted.items()}
    )
    assert overall["radar_over_generate"] == pytest.approx(math.sqrt(15 / 3 * 20 / 3))  # over the faster cache
    assert overall["draft_calls_change"] == pytest.approx(24 / 32 - 1)
    assert overall["acceptance_change"] == 0.0
    measured = (5.0 - 0.5) / (4.0 * 0.75 - 0.5)  # of mbpp, where replay is furthest off; rounds, no prompt's pass
    assert overall["replay_error"] == pytest.approx(abs(1.26 / measured - 1))
    cell = summary["cells"]["a gsm8k T=0"]
    assert (cell["texts_identical"], cell["prompts"]) == (3, 3)
    assert cell["methods"]["radar"]["stop_histogram"] == {"2": 12}
    assert {name: one["nodes"] for name, one in cell["methods"].items()} | {AUTOREGRESSIVE: 60} == {
        AUTOREGRESSIVE: 60, "eagle3": 60, "best_fixed": 60, "threshold": 60, "published": 60, "radar": 100
    }  # fmt: skip


def test_what_was_not_measured_is_not_there():
    overall = summarise(full_runs(), {}, {})["overall"]["0"]
    assert not {"radar_over_generate", "replay_error"} & overall.keys()
    assert overall["radar_over"]["eagle3"]["value"] > 1
    assert summarise([], {}, {})["cells"] == {}


def test_all_texts_come_first_and_equal_ones_beside_them():
    """Prompt 0 is the same text and prompt 1 is not; RADAR is 2 and 10 times as fast."""
    runs = [run("radar", 0, 10, 1.0), run("radar", 1, 10, 0.2, text="other")]
    runs += [run("eagle3", prompt, 10, 2.0) for prompt in range(2)]
    runs += [run(AUTOREGRESSIVE, prompt, 10, 8.0) for prompt in range(2)]
    (cell,) = summarise(runs, {}, {})["cells"].values()
    assert cell["radar_over"]["eagle3"]["value"] == pytest.approx(4.0 / 1.2)
    assert cell["texts_identical"] == 1
    found = cell["radar_over_in_equal_texts"]
    assert list(found) == ["eagle3"]
    assert found["eagle3"]["value"] == pytest.approx(2.0)
    assert (found["eagle3"]["texts"], found["eagle3"]["cells"]) == (1, 1)


def test_a_cell_whose_texts_all_parted_says_so():
    parted = [run("radar", 0, 10, 1.0, text="other"), run("eagle3", 0, 10, 1.0)]
    same = [run(name, 0, 10, t, task="mbpp") for name, t in (("radar", 1.0), ("eagle3", 3.0))]
    plain = [run(AUTOREGRESSIVE, 0, 10, 8.0, task=task) for task in ("gsm8k", "mbpp")]
    summary = summarise(parted + same + plain, {}, {})
    assert summary["cells"]["a gsm8k T=0"]["radar_over_in_equal_texts"] == {}
    found = summary["overall"]["0"]["radar_over_in_equal_texts"]["eagle3"]
    assert (found["cells"], found["value"]) == (1, pytest.approx(3.0))


def test_replay_is_judged_by_the_rounds():
    """Without the prompt's pass and its token."""
    runs = [run("radar", 0, 41, 4.5), run("eagle3", 0, 61, 8.5), run(AUTOREGRESSIVE, 0, 61, 20.0)]
    (cell,) = summarise(runs, {}, predictions())["cells"].values()
    measured = (40 / 4.0) / (60 / 8.0)
    assert cell["replay"]["error"] == pytest.approx(126 / 100 / measured - 1)


def test_cost_errors_by_hand():
    table = CostTable(
        draft_call_seconds=(1.0, 2.0, 4.0), nodes=(32, 60), contexts=(100, 200),
        verify_seconds=((8.0, 8.0), (10.0, 30.0)),
        decision_seconds=0.5, rest_seconds=0.25, device="card", pair="a",
    )  # fmt: skip
    about = {"tokens": 20, "task": "mbpp", "temperature": 0.0, "prompt_tokens": 140, "prefill_seconds": 5.0}
    about |= {"nodes": 60, "max_calls": 3}
    small = 2 * (1 + 8 + 0.25) + (3 + 8 + 0.25)  # two rounds of one call, one of two, nothing decided
    middle = 5 + 1 + 0.5 + 20 + 0.25  # the context in the middle of the text, 150
    runs = [
        {**about, "method": "eagle3", "nodes": 32, "stops": {"1": 2, "2": 1}, "seconds": 5 + small / 1.1},
        {**about, "method": "radar", "stops": {"1": 1}, "seconds": middle},
        {**about, "method": AUTOREGRESSIVE, "stops": {"0": 19}, "seconds": 99.0},
    ]
    assert cost_errors(runs, table) == {"0": {"eagle3": pytest.approx(0.1), "radar": pytest.approx(0.0)}}
