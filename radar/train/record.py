"""Record rounds at full depth, with what every stop would have had accepted, to train and replay policies on.

A text is decoded to its end with every round drafted to `max_calls` (`radar.train.drafted`), and each round's
candidates are then followed along the text that came. At temperature 0 that decides what any tree would have had
accepted; above it the exact distribution of the accepted length is kept as well.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from radar.decoder import RadarDecoder
from radar.errors import UsageError
from radar.train.dataset import RoundsHeader, shard_path
from radar.train.drafted import FullRounds
from radar.train.lanes import Job, in_order
from radar.train.round_writer import RoundWriter
from radar.train.text_rounds import TextRounds

__all__ = ["record"]

LANES = 4  # texts at once on a GPU
StrPath = str | os.PathLike[str]


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
    sources: Sequence[FullRounds] | None = None,
) -> dict[str, Any]:
    """Decode the prompts and append their rounds to `out`; prompts that it holds already are skipped.

    The same list may have grown at its end; other prompts, another limit or another seed need another file.

    Launched by `accelerate launch` with several processes, each records its share of the prompts into a shard of `out`
    (see `radar.train.dataset`); every process needs a decoder on its own device.

    Args:
        decoder: whose model, head and tree are used, with caches of their own: make it with engine="eager", which
            captures and compiles nothing. Its tree's `max_calls` is the depth recorded.
        prompts: token ids; the index of a prompt is its id in the file.
        out: data set to write or go on with; see `radar.train.dataset`. A mapping {total_tokens: data set} records
            for trees of several sizes at once: their candidates are the same.
        max_new_tokens: output per prompt; less where the cache is full before. Rounds whose continuation is cut off by
            it are left out.
        temperature: 0 follows the greedy text. Above it the text is sampled, and the exact distribution of the accepted
            length is recorded for every stop.
        seed: of the sampling; a prompt's text depends on it and the prompt's index alone.
        metadata: facts for the header.
        every_token: record a round at every token of the text, several times as many. Replay then goes from round to
            round as decoding does, where otherwise each recorded round counts once for every policy.
        progress: show a bar on stderr.
        sources: `FullRounds` of these arguments, for many short calls: making one captures graphs on a GPU. As many
            texts are decoded at once. None: four on a GPU, whose rounds overlap, one on a CPU.

    Returns:
        What was recorded by this process, of the first data set: prompts, rounds, mean accepted length for every stop.

    Warns if that data set holds no round in the end.

    Raises:
        ValueError: prompts that do not fit, which are looked for before anything is decoded; `sources` of other
            arguments; or a data set that was begun with other settings or prompts. What was recorded before stays.
    """
    ids = _checked(decoder, prompts)
    given = dict(out) if isinstance(out, Mapping) else {decoder.tree.total_tokens: out}
    if not given:
        raise UsageError("record: out names no data set")
    index, count = _process(decoder.engine.target.device)
    fields = ("signals", "distribution") if temperature > 0 else ("signals",)
    trees = [replace(decoder.tree, total_tokens=nodes) for nodes in given]
    paths = [Path(path) if count == 1 else shard_path(path, index, count) for path in given.values()]
    total = torch.zeros(decoder.tree.max_calls, dtype=torch.float64)
    rounds = 0
    if sources is None:
        lanes = max(1, min(LANES, len(prompts))) if decoder.engine.target.device.type == "cuda" else 1
        sources = [FullRounds(decoder, temperature, every_token=every_token) for _ in range(lanes)]
    for source in sources:
        if (source.decoder, source.temperature, source.every_token) != (decoder, temperature, every_token):
            raise UsageError("record: sources are of another decoder, temperature or every_token")

    mine = range(index, len(ids), count)
    limits = {number: min(max_new_tokens, decoder.max_length - len(ids[number])) for number in mine}
    facts = {number: _facts(ids[number], limits[number], seed) for number in mine}
    headers = [RoundsHeader(tree, temperature, metadata or {}, fields, every_token) for tree in trees]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(RoundWriter(path, header, facts)) for path, header in zip(paths, headers, strict=True)
        ]
        jobs = [
            Job(number, ids[number], limits[number], seed * 1_000_003 + number)
            for number in mine
            if any(number not in writer.done for writer in writers)
        ]
        bar = stack.enter_context(tqdm(total=len(jobs), desc="prompts", disable=not progress or index > 0))
        for job, drafted in stack.enter_context(closing(in_order(sources, jobs))):
            ends, calls = decoder.eos_token_ids, decoder.tree.max_calls
            text = TextRounds(drafted, len(job.prompt), calls, ends=ends, every_token=every_token)
            for writer, tree in zip(writers, trees, strict=True):
                if job.number in writer.done and writer is not writers[0]:
                    continue
                part = text.rounds(tree)
                if job.number not in writer.done:
                    writer.write_prompt(
                        job.number, part.positions, part.scores, part.lengths, signals=part.signals,
                        distribution=part.distribution if temperature > 0 else None,
                    )  # fmt: skip
                if writer is writers[0]:
                    rounds += len(part.lengths)
                    total += part.lengths.double().sum(0)
            bar.update()
            bar.set_postfix(rounds=rounds)
        done = len(writers[0].done)
    if mine and not rounds and b'"scores"' not in paths[0].read_bytes():
        calls = decoder.tree.max_calls
        warnings.warn(
            f"record: {paths[0]} holds no round: one counts where the text goes on for max_calls={calls} tokens behind "
            f"its start, or ends, and texts of max_new_tokens={max_new_tokens} did neither. Record to a new file with "
            f"max_new_tokens (--max-new-tokens) well above {calls}",
            stacklevel=2,
        )
    mean = (total / max(1, rounds)).tolist()
    return {
        "out": str(paths[0]),
        "prompts_done": done,
        "new_rounds": rounds,
        "mean_accept_length_by_calls": [round(value, 4) for value in mean],
    }


def _checked(decoder: RadarDecoder, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token ids of the prompts. ValueError: one is none, or they leave no room for a text."""
    ids = []
    for number, prompt in enumerate(prompts):
        try:
            ids.append(decoder.encode(prompt))
        except ValueError as error:
            raise UsageError(f"record: prompt {number}: {error}") from error
    room = decoder.max_length
    long = [f"{number} ({len(prompt)} tokens)" for number, prompt in enumerate(ids) if len(prompt) >= room]
    if long:
        named = ", ".join(long[:10]) + (f" and {len(long) - 10} more" if len(long) > 10 else "")
        raise UsageError(
            f"record: {len(long)} of {len(ids)} prompts leave no room for a text; the cache has max_length={room} "
            f"tokens, prompt and output together: prompts {named}. Nothing was recorded: make max_length (--max-length)"
            " larger, or leave them out"
        )
    return ids


def _facts(prompt: Sequence[int], max_new_tokens: int, seed: int) -> dict[str, Any]:
    """What the prompt's text depends on, beside the header: as `radar.train.dataset` says."""
    digest = hashlib.sha256(json.dumps(prompt, separators=(",", ":")).encode()).hexdigest()[:16]
    return {"prompt_sha256": digest, "max_new_tokens": max_new_tokens, "seed": seed}


def _process(device: torch.device) -> tuple[int, int]:
    """(index, count) of this process among those that `accelerate launch` started; (0, 1) without it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    try:
        state: Any = importlib.import_module("accelerate").PartialState(cpu=device.type == "cpu")
    except ImportError as error:
        raise UsageError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but accelerate is not "
            "installed: pip install accelerate, or start one process"
        ) from error
    index, count = int(state.process_index), int(state.num_processes)
    if str(count) != os.environ["WORLD_SIZE"]:  # accelerate passes over a world that it cannot serve: all would write
        raise UsageError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but accelerate counts {count} processes on {device}")
    return index, count
