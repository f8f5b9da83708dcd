"""The draft vocabulary on disk: `d2t` maps draft ids to target ids, `t2d` marks the target ids that have one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["read_vocabulary"]


def read_vocabulary(
    state: Mapping[str, Tensor], *, vocab_size: int, draft_vocab_size: int
) -> tuple[Tensor, str | None, list[str]]:
    """Target ids of the draft vocabulary, however a file spells them.

    Trainers write offsets: target id = draft id + d2t[draft id]. Most sort the ids; some keep them in the order of
    their frequency, as the calibration of ModelOpt does. Some files hold the ids themselves. The values tell which,
    since ids must be different ones of the vocabulary, and those that `t2d` marks. A file with one of the maps has the
    other one implied, and a head over the whole vocabulary needs none. `t2d` may be of a vocabulary that is padded
    differently, if nothing that it marks is beyond this one.

    Returns:
        The ids [draft_vocab_size], int64, each once, in the order of the draft ids; a sentence on what was assumed, or
        None; and the problems, in which case the ids are the first of the vocabulary.
    """
    d2t, t2d = state.get("d2t"), state.get("t2d")
    if t2d is not None and t2d.dim() == 1 and not bool(t2d[vocab_size:].any()):
        t2d = torch.cat((t2d, t2d.new_zeros(max(vocab_size - len(t2d), 0))))[:vocab_size]
    identity = torch.arange(draft_vocab_size)
    problems = [] if d2t is None else _check(d2t, "d2t", draft_vocab_size)
    if t2d is not None:
        problems += _check(t2d, "t2d", vocab_size)
        if not problems and t2d.dtype != torch.bool and bool(((t2d != 0) & (t2d != 1)).any()):
            problems.append("t2d must mark target ids by 0 and 1, got other numbers")
    if problems:
        return identity, None, problems
    marked = None if t2d is None else t2d.nonzero().flatten()
    if d2t is not None:
        return _read_map(d2t.long(), marked, vocab_size)
    if marked is not None:
        if len(marked) != draft_vocab_size:
            return identity, None, [f"t2d marks {len(marked)} target ids, lm_head scores {draft_vocab_size}"]
        return marked, "d2t is missing: the target ids that t2d marks, ascending", []
    if draft_vocab_size == vocab_size:
        return identity, "d2t and t2d are missing: the draft vocabulary is the target's", []
    return identity, None, [f"missing d2t [{draft_vocab_size}]", f"missing t2d [{vocab_size}]"]


def _read_map(d2t: Tensor, marked: Tensor | None, vocab_size: int) -> tuple[Tensor, str | None, list[str]]:
    identity = torch.arange(len(d2t))
    offsets = d2t + identity
    readings = [
        (ids, form) for ids, form in ((offsets, "offsets"), (d2t, "ids")) if _are_different_ids(ids, vocab_size)
    ]
    if not readings:
        wrong = f"d2t maps to no {len(d2t)} different target ids below {vocab_size}"
        return identity, None, [f"{wrong}, neither as offsets (target id minus draft id) nor as ids"]
    fitting = [item for item in readings if marked is None or torch.equal(item[0].sort().values, marked)]
    if not fitting:
        return identity, None, ["t2d does not mark the target ids that d2t maps to"]
    ids, form = fitting[0]
    said = []
    if marked is None:
        said.append("t2d is missing: it marks what d2t maps to")
    if form == "ids":
        said.append("d2t holds target ids, not offsets")
    elif len(fitting) == 2 and not torch.equal(offsets, d2t):
        said.append("d2t could be ids as well: read as offsets, which every trainer writes")
    if bool((ids.diff() < 0).any()):
        said.append("the draft ids are not in the order of the target's: read as written")
    return ids, "; ".join(said) or None, []


def _check(tensor: Tensor, name: str, size: int) -> list[str]:
    if tensor.shape != (size,):
        return [f"{name} has shape {list(tensor.shape)}, expected [{size}]"]
    if tensor.is_floating_point() or tensor.is_complex() or (name == "d2t" and tensor.dtype == torch.bool):
        return [f"{name} has type {tensor.dtype}, expected integers"]
    return []


def _are_different_ids(ids: Tensor, vocab_size: int) -> bool:
    inside = bool((ids >= 0).all()) and bool((ids < vocab_size).all())
    return inside and len(ids.unique()) == len(ids)
