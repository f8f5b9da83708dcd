"""Prompts that are the same, or nearly: how much the trigrams of their words overlap.

What a trained policy has seen must not judge it. "Write a function to find the largest of three numbers." and "... of
two numbers." are other strings and the same question, so equal strings are not what is looked for.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from radar.files import replacing

__all__ = ["ALIKE", "fingerprint", "groups", "load_prompts_seen", "near_twins", "near_twins_of", "save_prompts_seen"]

ALIKE = 0.5  # Jaccard index above which two prompts are near-twins; 1 is the same words in the same order
PAIRS = 1 << 21  # that are compared at a time
SEEN_FILE = "prompts.safetensors"
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")

Fingerprints = Mapping[int, Tensor]  # by prompt


def fingerprint(text: str) -> Tensor:
    """Hashes of the trigrams of a text's words, ascending, each once: int64 [n], n >= 1. About 8 bytes a word."""
    words = _WORD.findall(text.lower()) or [text.strip()]
    trigrams = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    return torch.tensor(sorted({zlib.crc32(one.encode()) for one in trigrams}), dtype=torch.int64)


def near_twins(mine: Fingerprints, theirs: Fingerprints) -> dict[int, int]:
    """Prompts of `mine` that have a near-twin in `theirs`, and the nearest of these."""
    return {prompt: max(found, key=lambda one: found[one]) for prompt, found in _alike(mine, theirs)}


def near_twins_of(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """The same of texts, by their indices."""
    mine, theirs = ({number: fingerprint(text) for number, text in enumerate(one)} for one in (texts, others))
    return near_twins(mine, theirs)


def groups(prompts: Fingerprints) -> dict[int, int]:
    """The group of every prompt, named by a member: near-twins are of one group, and so are their near-twins."""
    group = {prompt: prompt for prompt in prompts}

    def root(prompt: int) -> int:
        while group[prompt] != prompt:
            group[prompt] = prompt = group[group[prompt]]
        return prompt

    for prompt, found in _alike(prompts, prompts):
        for other in found:
            group[root(other)] = root(prompt)
    return {prompt: root(prompt) for prompt in prompts}


def _alike(mine: Fingerprints, theirs: Fingerprints) -> Iterator[tuple[int, dict[int, float]]]:
    """Every prompt of `mine` with its near-twins and how near they are; an inverted index finds what they share."""
    if not theirs:
        return
    names = list(theirs)
    sizes = torch.tensor([len(theirs[name]) for name in names])
    trigrams, order = torch.cat([theirs[name] for name in names]).sort()
    owner = torch.arange(len(names)).repeat_interleave(sizes)[order]
    most = max(1, PAIRS // len(names))
    for some, own, lengths in _batches(mine, trigrams, most):
        first, last = (torch.searchsorted(trigrams, own, right=right) for right in (False, True))
        count = last - first
        places = torch.arange(int(count.sum())) + (first - count.cumsum(0) + count).repeat_interleave(count)
        asker = torch.arange(len(some)).repeat_interleave(lengths).repeat_interleave(count)
        pairs = (asker * len(names) + owner[places]).bincount(minlength=len(some) * len(names))
        shared = pairs.view(len(some), len(names)).double()
        index = shared / (sizes + lengths[:, None] - shared)
        found: dict[int, dict[int, float]] = {}
        for one, other in (index > ALIKE).nonzero().tolist():
            found.setdefault(some[one], {})[names[other]] = float(index[one, other])
        yield from found.items()


def _batches(prompts: Fingerprints, trigrams: Tensor, most: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """So many prompts at a time, or fewer that share about PAIRS trigrams with the sorted ones: their names, their
    trigrams one prompt behind the other, and how many each has."""
    some: list[int] = []
    shared = 0
    for prompt, own in prompts.items():
        here = int((torch.searchsorted(trigrams, own, right=True) - torch.searchsorted(trigrams, own)).sum())
        if some and (len(some) == most or shared + here > PAIRS):
            yield some, *_joined(prompts, some)
            some, shared = [], 0
        some.append(prompt)
        shared += here
    if some:
        yield some, *_joined(prompts, some)


def _joined(prompts: Fingerprints, some: Sequence[int]) -> tuple[Tensor, Tensor]:
    found = [prompts[prompt] for prompt in some]
    return torch.cat(found), torch.tensor([len(one) for one in found])


def save_prompts_seen(folder: str | os.PathLike[str], prompts: Fingerprints) -> None:
    """Write what a policy was trained on beside it: hashes, from which no text can be read."""
    (Path(folder) / SEEN_FILE).unlink(missing_ok=True)
    if not prompts:
        return
    tensors = {str(prompt): trigrams.clone() for prompt, trigrams in prompts.items()}  # no views, says safetensors
    with replacing(folder) as place:
        safetensors.torch.save_file(tensors, place / SEEN_FILE)


def load_prompts_seen(policy: str | os.PathLike[str]) -> dict[int, Tensor] | None:
    """The prompts that a policy (a folder, or a file in it) was trained on; None if it does not say."""
    path = Path(policy)
    file = (path if path.is_dir() else path.parent) / SEEN_FILE
    if not file.is_file():
        return None
    return {int(name): trigrams for name, trigrams in safetensors.torch.load_file(file).items()}
