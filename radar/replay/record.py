"""Record rounds at full depth, with what every stop would have had accepted, to train and replay policies on.

A text is decoded to its end with every round drafted to `max_calls` (`radar.replay.full_round`), and each round's
candidates are then followed along the text that came.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from radar.config import check_int
from radar.decoder import RadarDecoder
from radar.errors import UsageError
from radar.replay.full_round import FullRounds
from radar.replay.recording import Recording
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.target.digest import weights_digest
from radar.target.ranks import check_whole, ranks_of
from radar.tools.interrupts import interruptible
from radar.tools.processes import process_share
from radar.tools.twins import fingerprint

__all__ = ["record"]

LANES = 4  # texts at once on a GPU
StrPath = str | os.PathLike[str]


def record(
    decoder: RadarDecoder,
    prompts: Sequence[Sequence[int]],
    out: StrPath | Mapping[int, StrPath],
    *,
    texts: Sequence[str] | None = None,
    max_new_tokens: int = 192,
    temperature: float = 0.0,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    every_token: bool = False,
    progress: bool = True,
    sources: Sequence[FullRounds] | None = None,
) -> dict[str, Any]:
    """Decode the prompts and add their rounds to the folder `out`; prompts that it holds already are left out.

    The same list may have grown at its end; other prompts, settings or weights need another folder. Launched by
    `accelerate launch` with several processes, each records its share of the prompts into the same folder; every
    process needs a decoder on its own device.

    Args:
        decoder: whose model, head and tree are used, with caches of their own: make it with engine="eager", which
            captures and compiles nothing. Its tree's `max_calls` is the depth recorded.
        prompts: token ids; the index of a prompt is its number in the recording.
        out: folder to write to or go on with. A mapping {total_tokens: folder} records for trees of several sizes at
            once: their candidates are the same.
        texts: what the prompts say, without a chat template, to find near copies by. None: the ids, decoded.
        max_new_tokens: output per prompt, 1 or more, less in a full cache. Rounds that it cuts off are left out.
        temperature: 0 follows the greedy text. Above it the text is sampled, and the exact distribution of the accepted
            length is recorded for every stop.
        seed: of the sampling; a prompt's text depends on it and the prompt's index alone.
        metadata: facts for the header, JSON types.
        every_token: record a round at every token of the text, several times as many. Replay then goes from round to
            round as decoding does, where otherwise each recorded round counts once for every policy.
        progress: show a bar on stderr.
        sources: `FullRounds` of these arguments, for many short calls: making one captures graphs on a GPU. As many
            texts are decoded at once. None: four on a GPU, whose rounds overlap, one on a CPU.

    Returns:
        Of the first folder, as far as this process knows it: prompts, rounds, mean accepted length for every stop; and
        what this call added.

    Warns if that folder holds no round in the end, and of shards that were damaged.

    Raises:
        ValueError: bad options, or prompts that do not fit, which are looked for before anything is decoded; `sources`
            of other arguments; a folder that was begun with other prompts, settings or weights; a split model.
        KeyboardInterrupt: passed on, of SIGTERM too. All texts that were finished are written.
    """
    check_whole(ranks_of(decoder.model), "record")
    ids, tree = _checked(decoder, prompts, max_new_tokens), decoder.tree
    given = dict(out) if isinstance(out, Mapping) else {tree.total_tokens: out}
    if texts is None:
        texts = [decoder.tokenizer.decode(one) if decoder.tokenizer else " ".join(map(str, one)) for one in ids]
    index, count = process_share()
    about: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_length": decoder.max_length, "seed": seed}
    about |= {"target_weights": weights_digest(decoder.model)}
    about |= {"draft_weights": weights_digest(decoder.draft), **(metadata or {})}
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        folders = []
        for nodes, path in given.items():
            shape = replace(tree, total_tokens=nodes)
            header = RoundsHeader(shape, temperature, about, every_token, shape.node_choices)
            folders.append(Recording(Path(path), header, ids))
        mine = range(index, len(ids), count)
        todo = [number for number in mine if any(number not in folder.done for folder in folders)]
        first, before = folders[0], (len(folders[0].done), folders[0].rounds)
        if sources is None:
            lanes = min(len(todo), LANES if decoder.engine.target.device.type == "cuda" else 1)
            sources = [FullRounds(decoder, temperature, every_token=every_token) for _ in range(lanes)]
        free: SimpleQueue[FullRounds] = SimpleQueue()
        for source in sources:
            if (source.decoder, source.temperature, source.every_token) != (decoder, temperature, every_token):
                raise UsageError("record: sources are of another decoder, temperature or every_token")
            free.put(source)

        def rounds_of(number: int) -> list[tuple[Recording, RoundDataset]]:
            """A prompt's rounds, by the folders that lack them. Threads wait here for a source."""
            source, limit = free.get(), min(max_new_tokens, decoder.max_length - len(ids[number]))
            try:
                text = source.text(ids[number], limit, seed=seed * 1_000_003 + number)
            finally:
                free.put(source)
            missing, trigrams = [one for one in folders if number not in one.done], fingerprint(texts[number])
            return [(folder, text.rounds(number, folder.header, trigrams)) for folder in missing]

        for folder in folders:
            stack.enter_context(folder)
        bar = tqdm(total=len(mine), initial=len(mine) - len(todo), desc="prompts", disable=not progress or index > 0)
        stack.enter_context(bar)
        pool = ThreadPoolExecutor(2 * len(sources) or 1)  # half of them decode while the others follow their texts
        stack.callback(pool.shutdown, cancel_futures=True)  # texts in work are waited for
        # a source alone works in this thread, where Ctrl-C ends a text at once
        results = pool.map(rounds_of, todo) if len(sources) > 1 else map(rounds_of, todo)
        for number, parts in zip(todo, results, strict=True):
            for folder, rounds in parts:
                folder.add(number, rounds)
            bar.update()
    if not first.rounds:
        warnings.warn(
            f"record: {first.path} holds no round: one counts where the text goes on for max_calls={tree.max_calls} "
            f"tokens behind its start, or ends, and texts of max_new_tokens={max_new_tokens} did neither. Record to a "
            f"new folder with max_new_tokens (--max-new-tokens) well above {tree.max_calls}",
            stacklevel=2,
        )
    return {
        "out": str(first.path),
        "prompts": len(first.done),
        "new_prompts": len(first.done) - before[0],
        "rounds": first.rounds,
        "new_rounds": first.rounds - before[1],
        "mean_accept_length_by_calls": [round(value, 4) for value in (first.accepted / max(1, first.rounds)).tolist()],
    }


def _checked(decoder: RadarDecoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts. ValueError: there is none, one is none, or they leave no room for a text."""
    check_int("record", "max_new_tokens (--max-new-tokens)", max_new_tokens, 1, 2**31)
    ids, room = [], decoder.max_length
    for number, prompt in enumerate(prompts):
        try:
            ids.append(decoder.encode(prompt))
        except ValueError as error:
            raise UsageError(f"record: prompt {number}: {error}") from error
    if long := [f"{number} ({len(one)} tokens)" for number, one in enumerate(ids) if len(one) >= room]:
        raise UsageError(
            f"record: {len(long)} of {len(ids)} prompts leave no room for a text; the cache has max_length={room} "
            f"tokens, prompt and output together: prompts {', '.join(long[:10])}{', ...' if len(long) > 10 else ''}. "
            "Nothing was recorded: make max_length (--max-length) larger, or leave them out"
        )
    return ids
