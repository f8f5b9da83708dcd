"""Prompts that are nearly the same are found, whatever their number, and what is not alike is not."""

import random
import time
from pathlib import Path

import pytest
import torch

from radar.tools import twins
from radar.tools.twins import ALIKE, fingerprint, groups, load_prompts_seen, near_twins, save_prompts_seen

QUESTION = "Write a function to find the largest of three numbers."


def alike(one: str, other: str) -> bool:
    return bool(near_twins({0: fingerprint(one)}, {0: fingerprint(other)}))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (QUESTION, True),
        ("write a  function, to find the LARGEST of three numbers", True),  # words alone count
        ("Write a function to find the largest of two numbers.", True),  # 6 of 10 trigrams
        ("Write a function to find the second largest of two given numbers.", False),
        ("Write a python function to find the largest of three numbers.", True),
        ("Write a function to sort a list of tuples by the second value.", False),
        ("", False),
    ],
)
def test_near_twins_share_half_of_their_trigrams(other: str, expected: bool) -> None:
    assert alike(QUESTION, other) is expected
    assert alike(other, QUESTION) is expected


def test_the_index_is_jaccards() -> None:
    """n words in common of n + 1 and n: (n - 2) / (n - 1) of the trigrams, exactly at the bound for three words."""
    for count in range(3, 9):
        words = [f"w{n}" for n in range(count)]
        index = (count - 2) / (count - 1)
        assert alike(" ".join(words), " ".join([*words, "more"])) is (index > ALIKE)


def test_texts_without_three_words_are_alike_if_they_are_equal() -> None:
    for text in ("Hello", "two words", "?!", "数字"):
        assert alike(text, text)
        assert not alike(text, text + " there is more")
    assert not alike("?!", "!?")
    assert alike("请写一个函数来计算两个数字的和", "请写一个函数来计算两个数字的积")  # every sign is a word
    assert not alike("请写一个函数来计算两个数字的和", "今天天气怎么样我们去公园吧好吗")


def test_the_nearest_twin_is_named() -> None:
    theirs = {7: fingerprint(QUESTION + " Now."), 9: fingerprint(QUESTION), 11: fingerprint("something else at all")}
    assert near_twins({3: fingerprint(QUESTION), 4: fingerprint("a b c d")}, theirs) == {3: 9}
    assert near_twins({3: fingerprint(QUESTION)}, {}) == near_twins({}, theirs) == {}


@pytest.mark.parametrize("pairs", [1, 60, 1 << 21])
def test_prompts_are_looked_at_in_batches_of_what_they_share(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    """However small these are, what is found is what sets of trigrams say; and no batch shares more, but a prompt."""
    monkeypatch.setattr(twins, "PAIRS", pairs)
    draw = random.Random(0)
    prints = {
        10 * n: fingerprint("you are a helpful assistant and answer " + " ".join(draw.choices("abcde", k=8)))
        for n in range(40)
    }
    mine, theirs = dict(list(prints.items())[:25]), dict(list(prints.items())[10:])
    index = {
        one: {other: len(a & b) / len(a | b) for other, print_ in theirs.items() if (b := set(print_.tolist())) and a}
        for one, of_it in mine.items()
        if (a := set(of_it.tolist()))
    }
    expected = {one: max(found, key=lambda other: found[other]) for one, found in index.items()}
    alike = {one for one, found in index.items() if max(found.values()) > ALIKE}
    found = near_twins(mine, theirs)
    assert set(found) == alike
    assert len(alike) > 15
    assert all(index[one][other] == index[one][expected[one]] for one, other in found.items())
    trigrams = torch.cat(list(theirs.values())).sort().values
    sizes = []
    for some, own, lengths in twins._batches(mine, trigrams, 7):
        shared = torch.searchsorted(trigrams, own, right=True) - torch.searchsorted(trigrams, own)
        assert len(some) == 1 or int(shared.sum()) <= pairs
        assert len(own) == lengths.sum()
        sizes.append(len(some))
    assert sum(sizes) == len(mine)
    assert max(sizes) == (1 if pairs < 100 else 7)


def test_groups_go_through_what_lies_between() -> None:
    words = [f"w{n}" for n in range(20)]
    chain = {n: fingerprint(" ".join(words[2 * n : 2 * n + 10])) for n in range(5)}  # each shares 6 of 10 with the next
    assert near_twins({0: chain[0]}, {4: chain[4]}) == {}
    found = groups(chain | {9: fingerprint("another thing entirely here")})
    assert len({found[n] for n in range(5)}) == 1
    assert found[9] == 9


def test_thousands_against_hundreds_take_seconds() -> None:
    """Prompts of forty words of which ten are of a frame that all share, as chat templates and task sets have."""
    rng, frame = random.Random(0), "write a python function to find the number of the"
    texts = [f"{frame} {' '.join(rng.choices([f'w{n}' for n in range(900)], k=30))}" for _ in range(3_200)]
    mine = {n: fingerprint(text) for n, text in enumerate(texts[:3_000])}
    theirs = {n: fingerprint(text) for n, text in enumerate(texts[3_000:])} | {777: mine[123]}
    start = time.perf_counter()
    assert near_twins(mine, theirs) == {123: 777}
    assert time.perf_counter() - start < 5  # a tenth of one here; pair by pair in Python it would be seven
    assert sum(one.numel() for one in mine.values()) * 8 < 1.5e6  # bytes


def test_what_a_policy_has_seen_stays_beside_it(tmp_path: Path) -> None:
    joined = torch.cat([fingerprint(QUESTION), fingerprint("another one of these")])
    seen = {0: joined[:8], 5: joined[8:]}  # views of one tensor, as a shard gives them
    save_prompts_seen(tmp_path, seen)
    for policy in (tmp_path, tmp_path / "policy.safetensors"):
        found = load_prompts_seen(policy)
        assert found is not None
        assert {name: one.tolist() for name, one in found.items()} == {n: one.tolist() for n, one in seen.items()}
    assert b"function" not in (tmp_path / "prompts.safetensors").read_bytes()
    save_prompts_seen(tmp_path, {})
    assert load_prompts_seen(tmp_path) is None
