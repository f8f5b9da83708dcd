"""Texts that a target writes after prompts, on disk: what a draft head for it is trained on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from radar.config import check_int
from radar.errors import FormatError, UsageError
from radar.files import replacing
from radar.tools.interpreter import set_for_engine
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
    seconds: float = math.inf,
    metadata: Mapping[str, Any] | None = None,
    has_room: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Let the target answer prompts, all turns of a chat, and add each whole text to the folder `out`: a line
    `{"text": ..., "finish_reason": ..., "prompt": its number, "made": ...}` in a `.jsonl` file. Prompts whose texts are
    there are left out. An interruption or error loses texts in work alone: what is decoded is written.

    The list may have grown at its end. Launched by `accelerate launch` with several processes, each writes its share.

    Args:
        decoder: decodes as many texts at once as it has rows.
        lines: the prompts.
        out: folder to write to or go on with.
        max_new_tokens: of an answer; less where the cache is full before.
        temperature: of the texts.
        seed: of sampled text; a text depends on it and the prompt's number alone.
        seconds: no text is begun behind them; those in work are written to their ends.
        metadata: facts about how the texts are made, JSON types.
        has_room: the prompts are known to leave room for an answer, so that this is not looked at.
        progress: show a bar on stderr.

    Returns:
        out, texts, new_texts of them, and new_tokens of these, their prompts included, as far as this process knows.

    Raises:
        UsageError: a prompt that leaves no room for an answer; a folder of other prompts or options; one that
            cannot be written.
        FormatError: a file in the folder that is not of texts.
    """
    folder, (index, count) = Path(out), process_share()
    check_int("write_texts", "max_new_tokens (--max-new-tokens)", max_new_tokens, 1, 2**31)
    if not has_room:
        _check_room(lines, decoder)
    about = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, **(metadata or {})}
    about |= {"max_length": decoder.max_length}
    made = [_digest(line, about) for line in lines]
    _make_folder(folder)
    done = _texts_there(folder, made)
    todo = [number for number in range(index, len(lines), count) if number not in done]
    waiting: dict[int, tuple[str, str]] = {}
    before, written, tokens = len(done), 0.0, 0

    def text_of(number: int) -> tuple[str, str, int] | None:
        """None: it is too late to begin."""
        if time.monotonic() > deadline:
            return None
        line, answers, ids, reason = lines[number], list[str](), list[int](), ""
        for _ in line.turns:
            prompt = encode_prompt(line, decoder.tokenizer, answers)
            if (room := decoder.max_length - len(prompt)) < 1:
                break  # the turns before are a text too
            limit = min(max_new_tokens, room)
            one = decoder.generate(
                prompt, seed=seed * 1_000_003 + number, max_new_tokens=limit, temperature=temperature
            )
            answers.append(one.text)
            ids, reason = [*prompt, *one.token_ids], one.finish_reason
        return _text(ids, decoder.tokenizer), reason, len(ids)

    def flush() -> None:
        nonlocal written
        if waiting:
            name = f"texts-{min(waiting):07d}.jsonl"
            with replacing(folder) as place, (place / name).open("w", encoding="utf-8") as file:
                for number, (text, reason) in sorted(waiting.items()):
                    line = {"text": text, "finish_reason": reason, "prompt": number, "made": made[number]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            done.update(waiting)
            waiting.clear()
        written = time.monotonic()

    def keep_done() -> None:
        """Write what is decoded, also if nobody has asked for it yet."""
        for one, number in asked.items():
            whole = number not in done and one.done() and not one.cancelled() and one.exception() is None
            if whole and (found := one.result()) is not None:
                waiting[number] = found[:2]
        flush()

    bar = tqdm(total=len(todo), desc="texts", disable=not progress or index > 0)
    pool = ThreadPoolExecutor(decoder.max_batch_size)
    with interruptible() as interrupts, bar, ExitStack() as last:
        last.callback(set_for_engine())
        written = time.monotonic()
        deadline = written + seconds
        asked = {pool.submit(text_of, number): number for number in todo}
        try:
            for one in as_completed(list(asked)):
                if (found := one.result()) is not None:
                    waiting[asked[one]] = found[:2]
                    tokens += found[2]
                del asked[one]
                if len(waiting) >= SHARD_TEXTS or time.monotonic() - written > SHARD_SECONDS:
                    with interrupts.held():
                        flush()
                bar.update()
        finally:
            try:
                keep_done()
                pool.shutdown(cancel_futures=True)  # texts in work are waited for, until a second Ctrl-C
            finally:
                keep_done()
    return {"out": str(folder), "texts": len(done), "new_texts": len(done) - before, "new_tokens": tokens}


def _make_folder(folder: Path) -> None:
    """Before anything is decoded: hours later it would be too late to say that it cannot be."""
    try:
        with replacing(folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder} (--out) cannot be written: {error.strerror}; give a folder, or a name for a new one"
        ) from error


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
