"""The last stage: what was done and what it brings, as Markdown, and a text by rounds as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radar.files import replacing
from radar.fit.parts import EAGLE_CALLS, Parts
from radar.fit.stages import clock
from radar.policy.fitted import Fitted
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt
from radar.tools.show.page import page
from radar.tools.show.trace import trace
from radar.tools.table import table

__all__ = ["PAGE_FILE", "REPORT_FILE", "markdown", "write_report"]

REPORT_FILE, PAGE_FILE = "report.md", "show.html"
NO_GAIN = (
    " Drafts do not pay here: the head needs more text and time, or this machine is too slow for them. A decoder "
    "notices and takes plain steps."
)


def write_report(
    parts: Parts, folder: Path, fitted: Fitted, results: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """`report.md`, and `show.html` of one held-out prompt.

    Args:
        folder: of the fit.
        fitted: what it holds.
        results: of the stages, by name.
        seconds: of the stages so far.
    """
    decoder = parts.drafting(fitted.draft, beams=fitted.beams, policy=fitted.policy, engine="eager")
    limit = results["rounds"]["max_new_tokens"]
    seen = trace(decoder, encode_prompt(parts.split.judge[0], parts.tokenizer), max_new_tokens=limit, do_sample=False)
    about = {"target": parts.name, "draft": str(fitted.draft), "policy": repr(fitted.policy), "runner": parts.machine}
    with replacing(folder) as place:
        (place / PAGE_FILE).write_text(page(seen, parts.tokenizer, about=about), encoding="utf-8", newline="\n")
        text = markdown(parts, folder, results, seconds, policy=repr(fitted.policy))
        (place / REPORT_FILE).write_text(text, encoding="utf-8", newline="\n")
    return {"report": REPORT_FILE, "page": PAGE_FILE}


def markdown(
    parts: Parts, folder: Path, results: Mapping[str, Any], seconds: Mapping[str, float], *, policy: str
) -> str:
    """The report."""
    text, head, rounds, learned, judged = (results[name] for name in ("text", "head", "rounds", "policy", "judge"))
    machine, split = describe_machine(parts.device), parts.split
    low, high = judged["interval"]
    depths = [[call, f"{accepted + 1:.2f}"] for call, accepted in enumerate(rounds["accepted"], start=1)]
    agreement = [
        [call, f"{loss:.3f}", f"{share:.1%}"]
        for call, (loss, share) in enumerate(zip(head["loss"], head["agreement"], strict=True), start=1)
    ]
    rows = [
        [
            name,
            f"{speed:.1f}",
            f"{speed / judged['decoded']['without drafts'][1]:.2f} x",
            f"{length:.2f}",
            f"{calls:.2f}",
        ]
        for name, (_, speed, length, calls) in judged["decoded"].items()
    ]
    network, recorded = learned["why_no_network"], rounds["policy"]["prompts"]  # a fit of before tells these alone
    tuned_on, trained_on = (learned.get(name, recorded) for name in ("prompts", "network_prompts"))
    return "\n".join(
        [
            f"# A fit of {parts.name}",
            "",
            f"{judged['kept']} is kept: `{policy}`. Decoding is {judged['speed_up']:.2f} times as fast as without "
            f"drafts, by {judged['prompts']} held-out prompts, of which {judged['same']} got the same text from all "
            f"rows of the first table.{'' if judged['speed_up'] > 1 else NO_GAIN}",
            "",
            "```python",
            "from radar import RadarDecoder",
            "",
            f"decoder = RadarDecoder.from_pretrained({parts.name!r}, {str(folder)!r})",
            "```",
            "",
            f"[A text by rounds]({PAGE_FILE}), of a held-out prompt.",
            "",
            "## Decoded in turn, greedily",
            _block(table(["", "tokens/s", "speed-up", "tokens [per round]", "draft calls [per round]"], rows)),
            "## Replayed on held-out rounds",
            f"{judged.get('judged_by', 'Rounds')}, with this machine's costs. "
            f"{_why_kept(judged)}: {judged['ratio']:.3f} times EAGLE-3's speed ({low:.3f} to {high:.3f}, 95 % interval "
            "by prompt). It was chosen on these rounds, so the figure leans to the bright side.",
            _block(judged["replay"]),
            f"The rules were tuned on rounds of {tuned_on} other prompts."
            + (f" No network: {network}." if network else f" The network learnt from those of {trained_on}."),
            "",
            "## The head",
            f"{head['steps']} steps on {text['tokens']} tokens of {text['texts']} texts that the model wrote to "
            f"{len(split.text)} prompts, {text['passes']} to each at most; it proposes {head['draft_vocab_size']} ids. "
            f"Tokens a round with {EAGLE_CALLS} calls: {rounds['tokens_per_round']:.2f}.",
            _block(table(["draft call", "loss [nats]", "agrees with the target [of positions]"], agreement)),
            _block(table(["draft calls", "tokens [per round]"], depths)),
            "## Made on",
            _block(table(["part", "what"], [[name, value] for name, value in machine.items()])),
            _block(table(["stage", "time [m:ss]"], [[name, clock(value)] for name, value in seconds.items()])),
            f"{split.left_out} prompts were left out: near-twins of those that judge, or that `radar bench` has.",
            "",
        ]
    )


def _why_kept(judged: Mapping[str, Any]) -> str:
    if judged.get("fastest", judged["kept"]) == judged["kept"]:
        return "The fastest is kept"
    text = f"{judged['kept']} is kept, which {judged['fastest']} is ahead of by no more than chance"
    if "over_kept" not in judged:  # a fit of before
        return text
    over, low, high = judged["over_kept"]
    return f"{text} ({over:.3f} times its speed, {low:.3f} to {high:.3f})"


def _block(text: str) -> str:
    return f"\n```\n{text}\n```\n"
