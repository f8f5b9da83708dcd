"""Record rounds at full depth, with what every stop would have had accepted, to train and replay policies on.

A text is decoded to its end with every round drafted to `max_calls` (`radar.train.drafted`), and each round's
candidates are then followed along the text that came. At temperature 0 that decides what any tree would have had
accepted; above it the exact distribution of the accepted length is kept as well.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from radar.config import TreeConfig
from radar.decoder import RadarDecoder
from radar.train.acceptance import accept_lengths, acceptance_distribution, verified
from radar.train.dataset import RecordedSignals, RoundsHeader, RoundWriter, shard_path
from radar.train.drafted import Drafted, FullRounds
from radar.tree import DraftTree

__all__ = ["accept_lengths", "level_scores", "record"]

StrPath = str | os.PathLike[str]


def level_scores(scores: Tensor, config: TreeConfig) -> Tensor:
    """Candidates' scores [C] -> the beams' [max_calls, k]: what a policy reads after each call."""
    k = config.tree_top_k
    first, rest = scores[:k], scores[k:].view(config.max_calls - 1, k * k)
    return torch.cat((first.sort(descending=True).values[None], rest.topk(k, dim=1).values))


def record(
    decoder: RadarDecoder,
    prompts: Sequence[Sequence[int]],
    out: StrPath | Mapping[int, StrPath],
    *,
    max_new_tokens: int = 192,
    temperature: float = 0.0,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    every_token: bool = False,
    progress: bool = True,
    source: FullRounds | None = None,
) -> dict[str, Any]:
    """Decode the prompts and append their rounds to `out`; prompts that it holds already are skipped.

    Launched by `accelerate launch` with several processes, each records its share of the prompts into a shard of `out`
    (see `radar.train.dataset`); every process needs a decoder on its own device.

    Args:
        decoder: whose model, head and tree are used, with caches of their own: make it with engine="eager", which
            captures and compiles nothing. Its tree's `max_calls` is the depth recorded.
        prompts: token ids; the index of a prompt is its id in the file.
        out: data set to write or go on with; see `radar.train.dataset`. A mapping {total_tokens: data set} records
            for trees of several sizes at once: their candidates are the same.
        max_new_tokens: output per prompt. Rounds whose continuation is cut off by it are left out.
        temperature: 0 follows the greedy text. Above it the text is sampled, and the exact distribution of the accepted
            length is recorded for every stop.
        seed: of the sampling; a prompt's text depends on it and the prompt's index alone.
        metadata: facts for the header.
        every_token: record a round at every token of the text, several times as many. Replay then goes from round to
            round as decoding does, where otherwise each recorded round counts once for every policy.
        progress: show a bar on stderr.
        source: `FullRounds` of these arguments, for many short calls: making it captures a graph on a GPU.

    Returns:
        What was recorded by this process, of the first data set: prompts, rounds, mean accepted length for every stop.

    Raises:
        ValueError: a prompt that does not fit, `source` of other arguments, or a data set that was begun
            with other settings. What was recorded before stays.
    """
    given = dict(out) if isinstance(out, Mapping) else {decoder.tree.total_tokens: out}
    if not given:
        raise ValueError("record: out names no data set")
    index, count = _process(decoder.engine.target.device)
    fields = ("signals", "distribution") if temperature > 0 else ("signals",)
    trees = [replace(decoder.tree, total_tokens=nodes) for nodes in given]
    paths = [Path(path) if count == 1 else shard_path(path, index, count) for path in given.values()]
    total = torch.zeros(decoder.tree.max_calls, dtype=torch.float64)
    rounds = 0
    source = source or FullRounds(decoder, temperature, every_token=every_token)
    if (source.decoder, source.temperature, source.every_token) != (decoder, temperature, every_token):
        raise ValueError("record: source is of another decoder, temperature or every_token")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(RoundWriter(path, RoundsHeader(tree, temperature, metadata or {}, fields, every_token)))
            for path, tree in zip(paths, trees, strict=True)
        ]
        mine = range(index, len(prompts), count)
        bar = stack.enter_context(tqdm(mine, desc="prompts", disable=not progress or index > 0))
        for number in bar:
            if all(number in writer.done for writer in writers):
                continue
            prompt, seed_of = prompts[number], seed * 1_000_003 + number
            fits = len(prompt) + max_new_tokens <= decoder.max_length
            drafted = list(source.of(prompt, max_new_tokens if fits else None, seed=seed_of))
            ended = drafted[-1].tokens[-1] in decoder.eos_token_ids
            for writer, tree in zip(writers, trees, strict=True):
                part = _rounds_of(drafted, tree, len(prompt), ended, every_token)
                if number not in writer.done:
                    distribution = part.distribution if temperature > 0 else None
                    writer.write_prompt(
                        number, part.positions, part.scores, part.lengths, signals=part.signals,
                        distribution=distribution,
                    )  # fmt: skip
                if writer is writers[0]:
                    rounds += len(part.lengths)
                    total += part.lengths.double().sum(0)
            bar.set_postfix(rounds=rounds)
        done = len(writers[0].done)
    mean = (total / max(1, rounds)).tolist()
    return {
        "out": str(paths[0]),
        "prompts_done": done,
        "new_rounds": rounds,
        "mean_accept_length_by_calls": [round(value, 4) for value in mean],
    }


class _Recorded(NamedTuple):
    """n rounds of one generation; shapes as in `RoundDataset`."""

    positions: Tensor
    scores: Tensor
    lengths: Tensor
    signals: RecordedSignals
    distribution: Tensor


def _rounds_of(
    drafted: Sequence[Drafted], config: TreeConfig, prompt_length: int, ended: bool, every_token: bool = False
) -> _Recorded:
    """The rounds of a text whose continuation is known, for trees of one size. `ended`: by an end token."""
    text = [token for item in drafted for token in item.tokens]
    calls, k = config.max_calls, config.tree_top_k
    known, accepted, uncertainty, rows = 0, -1, 0.0, []
    for item in drafted:
        continuation = text[known:]
        if item.tree is not None and (len(continuation) >= calls or ended):
            tree = _of_size(item.tree, config)
            mass = verified(tree).double() @ tree.scores[0].double().exp()
            spread = torch.zeros(calls, calls + 1)
            if item.probabilities is not None:
                spread = acceptance_distribution(tree, item.probabilities).float()
            facts = torch.tensor([known, accepted])
            scores, lengths = level_scores(tree.scores[0], config), accept_lengths(tree, continuation)
            rows.append((facts, scores, lengths, mass.float(), torch.tensor(uncertainty), spread))
        if item.tree is not None and not every_token:
            accepted = len(item.tokens) - 1
        known, uncertainty = known + len(item.tokens), item.entropy
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        empty = RecordedSignals(torch.zeros(0, calls), none, torch.zeros(0), none)
        return _Recorded(
            none, torch.zeros(0, calls, k), none.view(0, 1).expand(0, calls), empty, torch.zeros(0, calls, calls + 1)
        )
    facts, scores, lengths, mass, uncertainties, spread = (torch.stack(column) for column in zip(*rows, strict=True))
    signals = RecordedSignals(mass, facts[:, 1], uncertainties, facts[:, 0])
    return _Recorded(prompt_length + facts[:, 0], scores, lengths, signals, spread)


def _of_size(tree: DraftTree, config: TreeConfig) -> DraftTree:
    twin = copy.copy(tree)
    twin.config = config
    return twin


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
