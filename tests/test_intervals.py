"""Ratios of speeds and their intervals, by hand."""

import itertools
import math

import pytest
import torch
from measured_runs import run

from bench.intervals import bounded, over, ratios


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
    assert over([runs], "radar", "eagle3") == pytest.approx((3.0, 3.0, 3.0))


def test_cells_count_by_their_geometric_mean():
    fast = [run(name, p, 10, t) for p in range(3) for name, t in (("radar", 1.0), ("eagle3", 4.0))]
    slow = [run(name, p, 10, t, task="mbpp") for p in range(3) for name, t in (("radar", 1.0), ("eagle3", 1.0))]
    assert over([fast, slow], "radar", "eagle3").value == pytest.approx(2.0)


def test_resamples_of_two_ratios_draw_the_same_prompts():
    """So that a figure of both has an interval: here one is twice the other in every resample."""
    (cell,) = cells("a")
    half = [one | {"method": "half", "seconds": one["seconds"] * 2} for one in cell if one["method"] == "radar"]
    (full, draws), (less, others) = (ratios([cell + half], name, "eagle3") for name in ("radar", "half"))
    assert full == pytest.approx(2 * less)
    assert torch.allclose(draws, 2 * others)
    assert bounded(full / less, draws / others) == pytest.approx((2.0, 2.0, 2.0))


def cells(pairs, task="gsm8k", slow=(1.0, 4.0, 2.0, 8.0)):
    """A cell for each pair; a prompt gains the same on every pair."""
    return [
        [run(name, p, 10, t, pair=pair, task=task) for p, theirs in enumerate(slow) for name, t in
         (("radar", 1.0), ("eagle3", theirs))]
        for pair in pairs
    ]  # fmt: skip


def width(found):
    return math.log(found.high / found.low)


def test_the_same_prompts_on_more_pairs_narrow_nothing():
    """What three pairs say of the same prompts is one sample of prompts, not three."""
    one, three = (over(cells(pairs), "radar", "eagle3") for pairs in ("a", "abc"))
    assert three == pytest.approx(one)


def test_other_prompts_do_narrow():
    one = over(cells("a"), "radar", "eagle3")
    four = over([cells("a", task)[0] for task in ("gsm8k", "mbpp", "alpaca", "mt_bench")], "radar", "eagle3")
    assert width(four) == pytest.approx(width(one) / 2, rel=0.25)  # four tasks' prompts are drawn by themselves


def test_a_cell_of_fewer_prompts_is_drawn_with_the_others():
    """A prompt that one pair has not finished; resamples without a text of that pair are left out."""
    (whole,), (part,) = cells("a"), cells("b", slow=(3.0,))
    found = over([whole, part], "radar", "eagle3")
    assert found.value == pytest.approx(math.sqrt(15 / 4 * 3))
    alone = over([whole], "radar", "eagle3")
    assert math.isfinite(found.low)
    assert width(found) < width(alone)
