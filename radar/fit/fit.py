"""A model and prompts in, a faster model out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from radar.decoder import default_device
from radar.draft.fit import default_tree
from radar.errors import UsageError
from radar.fit.costs import costs_file, measure, say_costs
from radar.fit.head import say_head, train
from radar.fit.judge import judge, say_judge
from radar.fit.needs import said
from radar.fit.parts import BEAMS, Parts
from radar.fit.policy import learn, say_policy
from radar.fit.progress import Progress
from radar.fit.report import REPORT_FILE, write_report
from radar.fit.rounds import record_rounds, say_rounds
from radar.fit.split import check_count, digest_of, split
from radar.fit.stages import Stages
from radar.fit.text import TOKENS_FILE, say_text, write
from radar.fit.widths import widths_of
from radar.policy.fitted import EAGLE_BEAMS, FITTED_FILE, read_fitted, write_fitted
from radar.replay.full_round import FullRound
from radar.target.checks import check_target, default_max_length, stock_model
from radar.target.digest import weights_digest
from radar.target.load import load_model, load_tokenizer
from radar.tools.processes import process_share
from radar.tools.prompts import PromptLine, encode_prompt, has_chat_template, load_prompts

__all__ = ["fit"]

StrPath = str | os.PathLike[str]


def fit(
    model: str,
    prompts: StrPath,
    out: StrPath,
    *,
    minutes: float = 15.0,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a head and a stop policy for a model, so that `RadarDecoder.from_pretrained(model, out)` decodes its own
    text faster. The same call goes on where an earlier one was interrupted, and returns at once what is finished.

    Args:
        model: folder or hub name, as `from_pretrained` takes it.
        prompts: JSON lines, as `radar.tools.prompts` reads them; chats need a tokenizer with a chat template.
        out: folder to write to or go on with.
        minutes: for all of it, interrupted calls included. Each stage gets its share, and does as well as it can; no
            stage is left out, so that very short times are overdrawn.
        device: None: a GPU if there is one.
        dtype: of the model; None: the checkpoint's.
        progress: show a bar on stderr.

    Returns:
        out, kept (which policy), speed_up (over decoding without drafts), tokens_per_round (with 8 calls), report (its
        path), seconds by stage: JSON types.

    Raises:
        UsageError: a model or prompts that cannot work, a folder of another fit, too little memory or disk.
        KeyboardInterrupt: passed on; the folder holds what is done.
    """
    started, folder = time.monotonic(), Path(out)
    if not 0 < minutes < 1e6:
        raise UsageError(f"minutes (--minutes) must be above 0, got {minutes!r}")
    if (count := process_share()[1]) > 1:
        raise UsageError(
            f"a fit is one process, and {count} were launched: run it without a launcher; `radar write-text`, "
            "`radar train-draft` and `radar record` do its stages one by one, of which the first and last take several"
        )
    lines = load_prompts(prompts)
    parts = _parts(model, lines, device, dtype)
    about = {
        "model": weights_digest(parts.model),
        "prompts": digest_of(lines),
        "machine": parts.machine,
        "dtype": str(parts.model.dtype),
    }
    told = "" if (folder / FITTED_FILE).is_file() else said(parts, folder, 60 * minutes)  # refuses before it makes
    with Progress(shown=progress) as shown:
        stages = Stages(folder, about, seconds=60 * minutes, started=started, progress=shown)
        shown.say(told or f"{folder} holds a finished fit; for a longer one give another folder")
        results = _run(parts, folder, stages)
    judged = results["judge"]
    return {
        "out": str(folder),
        "kept": judged["kept"],
        "speed_up": judged["speed_up"],
        "tokens_per_round": results["rounds"]["tokens_per_round"],
        "report": str(folder / REPORT_FILE),
        "seconds": stages.seconds(),
    }


def _parts(model: str, lines: Sequence[PromptLine], device: str | None, dtype: torch.dtype | None) -> Parts:
    """Loaded and looked at."""
    check_count(len(lines))
    tokenizer = load_tokenizer(model)
    if any(line.chat for line in lines) and not has_chat_template(tokenizer):
        raise UsageError(
            f"{sum(line.chat for line in lines)} of {len(lines)} prompts are chats, and the tokenizer of {model} has "
            'no chat template: take the chat or instruct version of the model, or plain prompts, {"prompt": "..."}'
        )
    here = Path(model).is_dir()  # what is fetched first shows a bar
    loaded = stock_model(load_model(model, device=default_device(device), dtype=dtype, progress=not here))
    length = default_max_length(loaded)
    widest = replace(default_tree(loaded.device), tree_top_k=max(BEAMS))
    check_target(loaded, length, FullRound.num_rows(widest))
    short = [line for line in lines if len(encode_prompt(line, tokenizer)) <= length // 2]
    measuring = load_prompts(Path(str(files("radar"))) / "assets" / "prompts.jsonl")
    return Parts(model, loaded, tokenizer, length, split(short, measuring))


def _run(parts: Parts, folder: Path, stages: Stages) -> dict[str, Any]:
    """All stages; what each found, by name."""
    head, found = folder / "head", dict[str, Any]()
    found["text"] = stages.run("text", lambda stage: write(parts, stage), say_text)
    found["head"] = stages.run("head", lambda stage: train(parts, stage, folder / "text" / TOKENS_FILE), say_head)
    found["rounds"] = stages.run("rounds", lambda stage: record_rounds(parts, stage, head), say_rounds)
    beams = found["rounds"].get("beams", [EAGLE_BEAMS])  # a fit of before, which goes on, tried no others
    found["costs"] = stages.run("costs", lambda stage: measure(parts, stage, head, beams), say_costs)
    found["policy"] = stages.run("policy", lambda stage: learn(stage, widths_of(folder, "policy", beams)), say_policy)
    found["judge"] = stages.run(
        "judge",
        lambda stage: judge(
            parts,
            stage,
            folder,
            found["policy"],
            widths_of(folder, "judge", beams),
            max_new_tokens=found["rounds"]["max_new_tokens"],
        ),
        say_judge,
    )

    def report(_: object) -> dict[str, Any]:
        judged = found["judge"]
        kept = judged.get("beams", EAGLE_BEAMS)
        about = {"model": parts.name, "machine": parts.machine, "kept": judged["kept"]}
        costs = f"costs/{costs_file(kept)}"
        write_fitted(folder, draft="head", policy=judged["policy"], costs=costs, about=about, beams=kept)
        fitted = read_fitted(folder)
        assert fitted is not None
        return write_report(parts, folder, fitted, found, stages.seconds())

    found["report"] = stages.run("report", report, lambda result: str(folder / result["report"]))
    return found
