"""The third stage: rounds of the head at full depth, of prompts that policies learn from and prompts that judge."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radar.errors import NotFoundError, UsageError
from radar.fit.parts import BEAMS, EAGLE_CALLS, Parts, called
from radar.fit.stages import Stage
from radar.policy.fitted import EAGLE_BEAMS
from radar.replay.full_round import FullRounds
from radar.replay.record import LANES, record
from radar.replay.recording import read_rounds
from radar.replay.rounds import RoundDataset
from radar.tools.prompts import PromptLine, encode_prompt

__all__ = ["record_rounds", "rounds_of", "say_rounds"]

JUDGE_SHARE = 0.25  # of the time
MOST_TOKENS, FAIR_TOKENS, LEAST_TOKENS = 192, 64, 20  # of a text; a text's last rounds, cut off, do not count
PROMPTS = 24  # at least, in the time: where that is short, texts are, down to what is fair
FEWEST = 2  # prompts with rounds, of each part
WEAK = 1.3  # tokens a round below which a head is of no use


def record_rounds(parts: Parts, stage: Stage, head: Path) -> dict[str, Any]:
    """Recordings `judge` and `policy` in the stage's folder, and those of other beams, of as many prompts as there is
    time for, of two at least. Those of other beams are of the same prompts, or the first of them; such beams are tried
    where two prompts of each part or more have rounds of both.

    Raises:
        UsageError: all texts are too short to hold rounds.
    """
    lines, recorded, limit = {"judge": parts.split.judge, "policy": parts.split.rounds}, dict[str, Any](), 0
    for count, beams in enumerate(BEAMS):
        limit, found = _record_beams(parts, stage, head, beams, lines, stage.left() / (len(BEAMS) - count))
        for name, one in found.items():
            recorded[called(name, beams)], lines[name] = one, lines[name][: one["prompts"]]
    shared = [one for one in BEAMS if all(len(_shared(stage.folder, name, one)) >= FEWEST for name in lines)]
    judged = recorded["judge"]["mean_accept_length_by_calls"]
    figures = {name: {key: one[key] for key in ("prompts", "rounds")} for name, one in recorded.items()}
    calls = min(EAGLE_CALLS, len(judged))
    return {
        **figures,
        "beams": shared,
        "accepted": judged,
        "tokens_per_round": round(judged[calls - 1] + 1, 3),
        "max_new_tokens": limit,
    }


def rounds_of(folder: Path, name: str, beams: int = EAGLE_BEAMS) -> RoundDataset:
    """What was recorded under this name, of trees of such beams."""
    return read_rounds(folder / called(name, beams))


def say_rounds(result: dict[str, Any]) -> str:
    tokens, beams = result["tokens_per_round"], result.get("beams", BEAMS[:1])  # a fit of before tried no others
    weak = "; the head is weak: more prompts and minutes may help" if tokens < WEAK else ""
    learn, judge = (sum(result[called(name, one)]["rounds"] for one in beams) for name in ("policy", "judge"))
    counts = f"{learn:,} rounds to learn from, {judge:,} to judge by"
    return f"{counts}; {tokens:.2f} tokens a round with {EAGLE_CALLS} calls{weak}"


def _record_beams(
    parts: Parts, stage: Stage, head: Path, beams: int, lines: Mapping[str, Sequence[PromptLine]], seconds: float
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Tokens of a text at most, and what `record` returns, by the names of the prompts. What decodes is let go at the
    end: there is one width at a time."""
    with stage.aside():
        decoder = parts.drafting(head, beams=beams, engine="eager")  # recording makes graphs of its own
        sources = [FullRounds(decoder, 0.0) for _ in range(LANES if parts.on_gpu else 1)]
        for source in sources:
            source.text(encode_prompt(parts.split.judge[0], parts.tokenizer), 2, seed=0)
    ends = time.monotonic() + seconds
    limit = stage.settled("max_new_tokens", lambda: _affordable(parts, sources[0], stage))
    found = {}
    for name, some in lines.items():
        left = (ends - time.monotonic()) * (JUDGE_SHARE if name == "judge" else 1.0)
        found[name] = _record(decoder, sources, some, stage.folder / called(name, beams), limit, left)
    return limit, found


def _record(
    decoder: Any, sources: Sequence[FullRounds], lines: Sequence[PromptLine], folder: Path, limit: int, seconds: float
) -> dict[str, Any]:
    """Prompts by the handful until the time is over."""
    ends, ids = time.monotonic() + seconds, [encode_prompt(line, decoder.tokenizer) for line in lines]
    step = 8 * len(sources) if len(sources) > 1 else 1
    for count in range(step, len(ids) + step, step):
        texts = [line.text for line in lines[:count]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no round so far
            result = record(
                decoder,
                ids[:count],
                folder,
                texts=texts,
                max_new_tokens=limit,
                sources=sources,
                progress=False,
            )
        if time.monotonic() > ends and len(_prompts(folder)) >= FEWEST:
            return result
    if len(_prompts(folder)) < FEWEST:
        raise UsageError(
            f"the texts of {len(ids)} prompts, of {limit} tokens at most, hold rounds of fewer than {FEWEST} prompts: "
            "give prompts that get longer answers"
        )
    return result


def _prompts(folder: Path) -> set[int]:
    """That have rounds."""
    try:
        return set(read_rounds(folder).prompt.tolist())
    except (UsageError, NotFoundError):
        return set()


def _shared(folder: Path, name: str, beams: int) -> set[int]:
    """Prompts that have rounds in trees of these beams, and of EAGLE-3's, with which they are compared."""
    return _prompts(folder / name) & _prompts(folder / called(name, beams))


def _affordable(parts: Parts, source: FullRounds, stage: Stage) -> int:
    """Tokens of a text, for so many prompts in the time: by what a text of a few tokens takes."""
    ids = encode_prompt(parts.split.judge[0], parts.tokenizer)
    begun, count = time.monotonic(), 24 if parts.on_gpu else 4
    got = len(source.text(ids, count, seed=0).tokens)
    rate = (LANES if parts.on_gpu else 1) * got / (time.monotonic() - begun)
    tokens = rate * stage.left() / len(BEAMS)
    if tokens < 2 * FEWEST * FAIR_TOKENS:
        return LEAST_TOKENS  # the time is over
    return int(min(max(tokens / PROMPTS, FAIR_TOKENS), MOST_TOKENS, parts.max_length // 2))
