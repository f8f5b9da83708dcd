"""Prompts by their uses: no near-twin of what judges is learnt from, and too few are refused."""

import random

import pytest

from radar.errors import UsageError
from radar.fit.split import digest_of, split
from radar.tools.prompts import PromptLine
from radar.tools.twins import near_twins_of

WORDS = "add sort find count merge reverse split join list number string file line word value item key pair tree"


def some(count, seed=0):
    """Prompts of ten words by chance: hardly two are alike."""
    rng = random.Random(seed)
    return [PromptLine(" ".join(rng.choices(WORDS.split(), k=10)), chat=False) for _ in range(count)]


def texts(lines):
    return [line.text for line in lines]


@pytest.mark.parametrize("count", [40, 400, 3000])
def test_parts_are_apart_and_all_are_used(count):
    lines = some(count)
    found = split(lines)
    assert len(found) == count
    assert found.left_out < count / 50
    assert len(found.judge) == max(4, min(80, count // 10))
    assert len(found.rounds) == max(20, min(400, count // 5))
    chosen = texts([*found.text, *found.rounds, *found.judge])
    assert sorted(chosen) == sorted(set(chosen) & set(texts(lines)))
    assert split(lines) == found


def test_near_twins_of_what_judges_are_nowhere_else():
    lines = some(900)
    twins = [PromptLine(f"{line.text} please", chat=False) for line in lines[::2]]
    found = split([*lines, *twins])
    held = texts([*found.judge, *found.rounds])
    assert near_twins_of(texts(found.text), held) == {}
    assert near_twins_of(texts(found.rounds), texts(found.judge)) == {}
    assert len(found.judge) == 80
    assert found.left_out < 10, "those that have near-twins are for text, so that little is lost"


def test_a_prompt_between_two_that_are_not_alike_is_lost_rather_than_learnt_from():
    """Each variant is a near-twin of its line, and of no other variant."""
    lines = some(300)
    variants = [f"{extra} {extra}a {extra}b {extra}c {line.text}" for line in lines for extra in ("one", "two", "six")]
    found = split([*lines, *(PromptLine(text, chat=False) for text in variants)])
    assert near_twins_of(texts(found.text), texts([*found.judge, *found.rounds])) == {}
    assert 0 < found.left_out < 100


def test_what_measures_is_left_out():
    lines = some(60)
    found = split(lines, measuring=[PromptLine(f"{lines[3].text} now", chat=True), lines[7]])
    assert found.left_out == 2
    kept = texts([*found.text, *found.rounds, *found.judge])
    assert set(texts(lines)) - set(kept) == {lines[3].text, lines[7].text}


def test_too_few_prompts_and_too_much_alike_ones_are_refused():
    with pytest.raises(UsageError, match="39 prompts are too little to go by: 40 are the least"):
        split(some(39))
    with pytest.raises(UsageError, match="39 prompts are too little to go by, without 1 that `radar bench` measures"):
        split(some(40), measuring=some(1))
    alike = [
        PromptLine(f"Write a function that adds {i} to the number that it is given", chat=False) for i in range(50)
    ]
    with pytest.raises(UsageError, match="the prompts are too much alike"):
        split(alike)


def test_a_digest_is_of_texts_order_and_form():
    lines = some(3)
    others = [lines[::-1], lines[:2], [*lines[:2], PromptLine(lines[2].text, chat=True)]]
    others.append([*lines[:2], PromptLine(lines[2].text, chat=False, later=("more",))])
    assert digest_of(list(lines)) == digest_of(lines)
    assert len({digest_of(one) for one in [lines, *others]}) == 5
