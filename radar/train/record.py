"""Record rounds at full depth, with what every stop would have had accepted, to train and replay policies on.

At temperature 0 the target's continuation decides what any tree would have had accepted. So a prompt is decoded to its
end with every round drafted to `max_calls`, and each round's candidates are then followed along the text that came.
Above it the target's probabilities are kept as well (`radar.train.sampled`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from radar.config import TreeConfig
from radar.decoder import RadarDecoder
from radar.policy.base import FixedDepth
from radar.train.acceptance import accept_lengths, acceptance_distribution, verified
from radar.train.dataset import RecordedSignals, RoundsHeader, RoundWriter, shard_path
from radar.train.sampled import Drafted, LogitsProbe, entropy_of_root, sampled_rounds

__all__ = ["accept_lengths", "level_scores", "record"]


def level_scores(scores: Tensor, config: TreeConfig) -> Tensor:
    """Candidates' scores [C] -> the beams' [max_calls, k]: what a policy reads after each call."""
    k = config.tree_top_k
    first, rest = scores[:k], scores[k:].view(config.max_calls - 1, k * k)
    return torch.cat((first.sort(descending=True).values[None], rest.topk(k, dim=1).values))


def record(
    decoder: RadarDecoder,
    prompts: Sequence[Sequence[int]],
    out: str | os.PathLike[str],
    *,
    max_new_tokens: int = 192,
    temperature: float = 0.0,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode the prompts and append their rounds to `out`; prompts that it holds already are skipped.

    Launched by `accelerate launch` with several processes, each records its share of the prompts into a shard of `out`
    (see `radar.train.dataset`); every process needs a decoder on its own device.

    Args:
        decoder: its tree's `max_calls` is the depth recorded; its policy is replaced by `FixedDepth(max_calls)`. Until
            the end every round drafts, whatever the decoder's fallback says: a plain step has no tree to record.
        prompts: token ids; the index of a prompt is its id in the file.
        out: data set to write or go on with; see `radar.train.dataset`.
        max_new_tokens: output per prompt. Rounds whose continuation is cut off by it are left out.
        temperature: 0 follows the greedy text. Above it the text is sampled, and the exact distribution of the accepted
            length is recorded for every stop; this needs a decoder with engine="eager".
        seed: of the sampling; a prompt's text depends on it and the prompt's index alone.
        metadata: facts for the header.
        progress: show a bar on stderr.

    Returns:
        What was recorded by this process: prompts, rounds, mean accepted length for every stop.
    """
    decoder.policy = FixedDepth(decoder.tree.max_calls)
    fields = ("signals", "distribution") if temperature > 0 else ("signals",)
    header = RoundsHeader(decoder.tree, temperature=temperature, metadata=metadata or {}, fields=fields)
    index, count = _process(decoder.engine.target.device)
    path = Path(out) if count == 1 else shard_path(out, index, count)
    total = torch.zeros(decoder.tree.max_calls, dtype=torch.float64)
    rounds = 0
    mine = range(index, len(prompts), count)
    with (
        _always_drafting(decoder),
        RoundWriter(path, header) as writer,
        tqdm(mine, desc="prompts", disable=not progress or index > 0) as bar,
    ):
        for number in bar:
            if number in writer.done:
                continue
            part = _record_prompt(decoder, prompts[number], max_new_tokens, temperature, seed * 1_000_003 + number)
            writer.write_prompt(
                number,
                part.positions,
                part.scores,
                part.lengths,
                signals=part.signals,
                distribution=part.distribution if temperature > 0 else None,
            )
            rounds += len(part.lengths)
            total += part.lengths.double().sum(0)
            bar.set_postfix(rounds=rounds)
        done = len(writer.done)
    mean = (total / max(1, rounds)).tolist()
    return {
        "out": str(path),
        "prompts_done": done,
        "new_rounds": rounds,
        "mean_accept_length_by_calls": [round(value, 4) for value in mean],
    }


@contextmanager
def _always_drafting(decoder: RadarDecoder) -> Iterator[None]:
    engine = decoder.engine
    fallback, engine.fallback = engine.fallback, None
    try:
        yield
    finally:
        engine.fallback = fallback


class _Recorded(NamedTuple):
    """n rounds of one generation; shapes as in `RoundDataset`."""

    positions: Tensor
    scores: Tensor
    lengths: Tensor
    signals: RecordedSignals
    distribution: Tensor


def _record_prompt(
    decoder: RadarDecoder, prompt: Sequence[int], max_new_tokens: int, temperature: float, seed: int
) -> _Recorded:
    fits = len(prompt) + max_new_tokens <= decoder.max_length
    limit = max_new_tokens if fits else None
    if temperature > 0:
        drafted = sampled_rounds(decoder, prompt, limit, temperature=temperature, seed=seed)
    else:
        drafted = _greedy_rounds(decoder, prompt, limit)
    text: list[int] = []
    snapshots: list[tuple[int, int, float, Drafted]] = []  # output known, last accept length, entropy, round
    last, entropy = -1, 0.0
    for item in drafted:
        if item.tree is not None:
            snapshots.append((len(text), last, entropy, item))
            last = len(item.tokens) - 1
        text.extend(item.tokens)
        entropy = item.entropy
    ended = text[-1] in decoder.eos_token_ids
    calls, k = decoder.tree.max_calls, decoder.tree.tree_top_k
    rows = []
    for known, accepted, uncertainty, item in snapshots:
        continuation = text[known:]
        if item.tree is None or (len(continuation) < calls and not ended):
            continue
        mass = verified(item.tree).double() @ item.tree.scores[0].double().exp()
        spread = torch.zeros(calls, calls + 1)
        if item.probabilities is not None:
            spread = acceptance_distribution(item.tree, item.probabilities).float()
        facts = torch.tensor([known, accepted])
        scores, lengths = level_scores(item.tree.scores[0], item.tree.config), accept_lengths(item.tree, continuation)
        rows.append((facts, scores, lengths, mass.float(), torch.tensor(uncertainty), spread))
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        empty = RecordedSignals(torch.zeros(0, calls), none, torch.zeros(0), none)
        return _Recorded(
            none, torch.zeros(0, calls, k), none.view(0, 1).expand(0, calls), empty, torch.zeros(0, calls, calls + 1)
        )
    facts, scores, lengths, mass, uncertainties, spread = (torch.stack(column) for column in zip(*rows, strict=True))
    signals = RecordedSignals(mass, facts[:, 1], uncertainties, facts[:, 0])
    return _Recorded(len(prompt) + facts[:, 0], scores, lengths, signals, spread)


def _greedy_rounds(decoder: RadarDecoder, prompt: Sequence[int], limit: int | None) -> Iterator[Drafted]:
    root = -1
    with LogitsProbe(decoder.model) as probe:
        for item in decoder.rounds(prompt, max_new_tokens=limit):
            logits = probe.logits
            tree = None if item.is_prefill else decoder.engine.drafter.tree.snapshot()
            yield Drafted(item.tokens, tree, entropy_of_root(tree, root, logits, logits.argmax(-1)))
            root = item.tokens[-1]


def _process(device: torch.device) -> tuple[int, int]:
    """(index, count) of this process among those that `accelerate launch` started; (0, 1) without it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    try:
        state: Any = importlib.import_module("accelerate").PartialState(cpu=device.type == "cpu")
    except ImportError as error:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but accelerate is not "
            "installed: pip install accelerate, or start one process"
        ) from error
    index, count = int(state.process_index), int(state.num_processes)
    if str(count) != os.environ["WORLD_SIZE"]:  # accelerate passes over a world that it cannot serve: all would write
        raise ValueError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but accelerate counts {count} processes on {device}")
    return index, count
