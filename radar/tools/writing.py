"""Texts that a target writes after prompts, on disk: what a draft head for it is trained on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from radar.config import check_int
from radar.errors import FormatError, UsageError
from radar.files import replacing
from radar.tools.interrupts import interruptible
from radar.tools.processes import process_share
from radar.tools.prompts import PromptLine, encode_prompt, read_lines

__all__ = ["write_texts"]

SHARD_TEXTS, SHARD_SECONDS = 256, 60.0  # a shard is written when either is reached: a crash costs no more than that


def write_texts(
    decoder: Any,
    lines: Sequence[PromptLine],
    out: str | os.PathLike[str],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Let the target answer prompts, all turns of a chat, and add each whole text to the folder `out`: a line
    `{"text": ..., "prompt": its number, "made": ...}` in a `.jsonl` file. Prompts whose texts are there are left out.

    The list may have grown at its end. Launched by `accelerate launch` with several processes, each writes its share.

    Args:
        decoder: decodes as many texts at once as it has rows.
        lines: the prompts.
        out: folder to write to or go on with.
        max_new_tokens: of an answer; less where the cache is full before.
        temperature: of the texts.
        seed: of sampled text; a text depends on it and the prompt's number alone.
        metadata: facts about how the texts are made, JSON types.
        progress: show a bar on stderr.

    Returns:
        out, texts, new_texts, and new_tokens of these, their prompts included, as far as this process knows.

    Raises:
        UsageError: a prompt that leaves no room for an answer; a folder of other prompts or options.
        FormatError: a file in the folder that is not of texts.
    """
    folder, (index, count) = Path(out), process_share()
    check_int("write_texts", "max_new_tokens (--max-new-tokens)", max_new_tokens, 1, 2**31)
    _check_room(lines, decoder)
    about = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, **(metadata or {})}
    about |= {"max_length": decoder.max_length}
    made = [_digest(line, about) for line in lines]
    done = _texts_there(folder, made)
    todo = [number for number in range(index, len(lines), count) if number not in done]
    waiting: dict[int, str] = {}
    written, tokens = time.monotonic(), 0

    def text_of(number: int) -> tuple[str, int]:
        line, answers, ids = lines[number], list[str](), list[int]()
        for _ in line.turns:
            prompt = encode_prompt(line, decoder.tokenizer, answers)
            if (room := decoder.max_length - len(prompt)) < 1:
                break  # the turns before are a text too
            limit = min(max_new_tokens, room)
            one = decoder.generate(
                prompt, seed=seed * 1_000_003 + number, max_new_tokens=limit, temperature=temperature
            )
            answers.append(one.text)
            ids = [*prompt, *one.token_ids]
        return _text(ids, decoder.tokenizer), len(ids)

    def flush() -> None:
        nonlocal written
        if waiting:
            with replacing(folder) as place, (place / f"texts-{min(waiting):07d}.jsonl").open("w") as file:
                for number in sorted(waiting):
                    line = {"text": waiting[number], "prompt": number, "made": made[number]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            done.update(waiting)
            waiting.clear()
        written = time.monotonic()

    bar = tqdm(total=len(todo), desc="texts", disable=not progress or index > 0)
    pool = ThreadPoolExecutor(decoder.max_batch_size)
    with interruptible(), bar:
        try:
            for number, (text, size) in zip(todo, pool.map(text_of, todo), strict=True):
                waiting[number] = text
                tokens += size
                if len(waiting) >= SHARD_TEXTS or time.monotonic() - written > SHARD_SECONDS:
                    flush()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # texts in work are waited for
            flush()  # of an interruption too: what waits is whole
    return {"out": str(folder), "texts": len(done), "new_texts": len(todo), "new_tokens": tokens}


def _check_room(lines: Sequence[PromptLine], decoder: Any) -> None:
    sizes = [len(encode_prompt(line, decoder.tokenizer)) for line in lines]
    if long := [f"{number} ({size} tokens)" for number, size in enumerate(sizes) if size >= decoder.max_length]:
        raise UsageError(
            f"{len(long)} of {len(lines)} prompts leave no room for an answer; the cache has max_length="
            f"{decoder.max_length} tokens, prompt and answer together: prompts {', '.join(long[:10])}"
            f"{', ...' if len(long) > 10 else ''}. Make max_length (--max-length) larger, or leave them out"
        )


def _text(ids: Sequence[int], tokenizer: Any) -> str:
    """That the ids come from again: a tokenizer that puts a token in front of every text puts it there twice."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    bos = getattr(tokenizer, "bos_token", None)
    again = tokenizer.encode(text)
    return text.removeprefix(bos) if bos and again[:2] == [tokenizer.bos_token_id] * 2 else text


def _digest(line: PromptLine, about: Mapping[str, Any]) -> str:
    told = json.dumps([line.turns, line.chat, about], sort_keys=True)
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()[:16]


def _texts_there(folder: Path, made: Sequence[str]) -> set[int]:
    """Numbers of the prompts whose texts are in the folder."""
    found = set[int]()
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(read_lines(file), start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)
                prompt, how = int(text["prompt"]), str(text["made"])
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(f"{file}:{number} is no text of this command: write to a new folder") from error
            if prompt >= len(made) or made[prompt] != how:
                raise UsageError(
                    f"{file}:{number} is of another prompt, model or option: write to a new folder, or as there"
                )
            found.add(prompt)
    return found
