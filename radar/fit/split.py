"""The prompts by their uses: none of one use is a near-twin of another's."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from radar.errors import UsageError
from radar.tools.prompts import PromptLine
from radar.tools.twins import fingerprint, groups, near_twins

__all__ = ["FEWEST", "Split", "check_count", "digest_of", "split"]

FEWEST = 40
JUDGE, ROUNDS = (4, 80), (20, 400)  # the fewest and the most prompts of these uses
SPARE = 3  # so many times as many are looked at, as those with near-twins in the rest go to the text


@dataclass(frozen=True)
class Split:
    """Prompts for the head's text, for the rounds that policies are trained and tuned on, and those that judge.

    Attributes:
        left_out: near-twins of what judges, and of what is left out anyway.
    """

    text: list[PromptLine]
    rounds: list[PromptLine]
    judge: list[PromptLine]
    left_out: int

    def __len__(self) -> int:
        return len(self.text) + len(self.rounds) + len(self.judge) + self.left_out


def digest_of(lines: Sequence[PromptLine]) -> str:
    """Short hash of prompts in their order."""
    told = json.dumps([[line.turns, line.chat] for line in lines])
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]


def check_count(count: int, without: str = "") -> None:
    """UsageError: so few prompts, without others as told, are too few."""
    if count < FEWEST:
        raise UsageError(
            f"{count} prompts are too little to go by{without}: {FEWEST} are the least, some for text, some to learn "
            "from and some to judge by; some thousand make a good head"
        )


def split(lines: Sequence[PromptLine], measuring: Sequence[PromptLine] = ()) -> Split:
    """Part the prompts, in an order that depends on nothing but their number.

    A tenth judges, a fifth gives rounds, within bounds; the rest is for text. Prompts that are alike stay together.

    Args:
        lines: the prompts.
        measuring: prompts that nothing may be trained on; they and their near-twins are left out.

    Raises:
        UsageError: too few prompts, or too few that differ.
    """
    prints = {number: fingerprint(line.text) for number, line in enumerate(lines)}
    spoilt = near_twins(prints, {number: fingerprint(line.text) for number, line in enumerate(measuring)})
    order = [number for number in range(len(lines)) if number not in spoilt]
    check_count(len(order), f", without {len(spoilt)} that `radar bench` measures with" if spoilt else "")
    random.Random(0).shuffle(order)
    most = {
        "judge": min(max(len(order) // 10, JUDGE[0]), JUDGE[1]),
        "rounds": min(max(len(order) // 5, ROUNDS[0]), ROUNDS[1]),
    }
    count = SPARE * sum(most.values())
    seen, rest = order[:count], order[count:]
    kept = _held_out(_of(prints, seen), _of(prints, rest), most)
    held = {number for numbers in kept.values() for number in numbers}
    free = [number for number in order if number not in held]
    twins = near_twins(_of(prints, free), _of(prints, sorted(held)))
    text = [number for number in free if number not in twins]
    for name, found in (("text", text), *kept.items()):
        if len(found) < 2:
            raise UsageError(
                f"the prompts are too much alike: of {len(order)}, {len(found)} are left for the part {name!r} that "
                "are no near-twins of the others. Give prompts that differ"
            )
    chosen = {name: [lines[number] for number in numbers] for name, numbers in {"text": text, **kept}.items()}
    return Split(**chosen, left_out=len(spoilt) + len(twins))


def _of(prints: dict[int, Tensor], numbers: Sequence[int]) -> dict[int, Tensor]:
    return {number: prints[number] for number in numbers}


def _held_out(seen: dict[int, Tensor], rest: dict[int, Tensor], most: dict[str, int]) -> dict[str, list[int]]:
    """Of `seen`, as many as wanted for each use: groups of near-twins, whole, that have none in the rest."""
    group = groups(seen)
    common = {group[number] for number in near_twins(rest, seen).values()}
    members: dict[int, list[int]] = {}
    for number in seen:
        members.setdefault(group[number], []).append(number)
    kept: dict[str, list[int]] = {name: [] for name in most}
    for name, numbers in members.items():
        for use, limit in most.items():
            if name not in common and len(kept[use]) + len(numbers) <= limit:
                kept[use] += numbers
                break
    return kept
