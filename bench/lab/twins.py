"""Prompts that are nearly another: more than half of the trigrams of their words in common."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["near_twins"]

ALIKE = 0.5  # Jaccard index above which two prompts are near-twins


def near_twins(texts: Sequence[str], others: Sequence[str]) -> set[int]:
    """Indices of texts that have a near-twin among the others."""
    theirs = [_trigrams(text) for text in others]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, trigrams in enumerate(theirs):
        for one in trigrams:
            holders[one].append(index)
    found = set()
    for index, text in enumerate(texts):
        ours = _trigrams(text)
        shared = Counter(other for one in ours for other in holders.get(one, ()))
        if any(count > ALIKE * (len(ours) + len(theirs[other]) - count) for other, count in shared.items()):
            found.add(index)
    return found


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower()) or [text.strip()]
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
