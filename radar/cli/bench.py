"""`radar bench`: what compares plain decoding, EAGLE-3 and RADAR on the same prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options, positive

__all__ = ["add_arguments", "run"]

PLAIN = "autoregressive"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs the three decoders in turn on every prompt, without sampling, and prints tokens per second, acceptance, "
        "draft calls, how often each stopped where, and whether all outputs are identical. Where texts part it shows "
        "the token, the gap between the two candidates and whether rounding explains it. Later turns of a prompt are "
        "decoded as a conversation, with the autoregressive decoder's answers. Exit status 1 if texts part where no "
        "rounding explains it."
    )
    add_prompt_options(parser, max_new_tokens=128)
    parser.add_argument("--repeats", type=positive, default=1, metavar="N", help="passes over the prompts (default 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_model_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from radar.cli.decoders import drafting_decoder
    from radar.tools.compare import compare
    from radar.tools.differences import find_differences
    from radar.tools.stock import StockModel

    decoder, lines = drafting_decoder(args)
    with tqdm(total=len(lines) * args.repeats, desc="prompts", disable=args.no_progress) as bar:
        rows, texts = compare(
            _contenders(decoder, args),
            lines,
            decoder.tokenizer,
            max_new_tokens=args.max_new_tokens,
            repeats=args.repeats,
            advance=bar.update,
        )
    stock = StockModel(decoder.model, decoder.tokenizer)
    differences = find_differences(texts, stock.scores, stock.dtype)
    show = _print_json if args.json else _print
    show(args, decoder, rows, texts, differences)
    return 0 if all(difference.is_tie for difference in differences) else 1


def _contenders(decoder: Any, args: argparse.Namespace) -> list[Any]:
    from radar import RadarPolicy
    from radar.cli.decoders import eagle_decoder, plain_decoder
    from radar.policy.fitted import EAGLE_BEAMS
    from radar.tools.compare import Contender

    def use(policy: Any) -> Any:
        return lambda: setattr(decoder, "policy", policy)

    policy = decoder.policy
    eagle = Contender("EAGLE-3", decoder, use(_eagle(decoder)))
    if decoder.tree.tree_top_k != EAGLE_BEAMS:
        eagle = Contender("EAGLE-3", eagle_decoder(decoder, args))
    ours = "RADAR" if isinstance(policy, RadarPolicy) else repr(policy)
    return [
        Contender(PLAIN, plain_decoder(decoder, args)),
        eagle,
        Contender(ours, decoder, use(policy)),
    ]


def _eagle(decoder: Any) -> Any:
    """EAGLE-3's eight draft calls, or as many as the tree allows."""
    from radar import FixedDepth

    return FixedDepth(min(8, decoder.tree.max_calls))


def _settings(args: argparse.Namespace, decoder: Any, texts: Sequence[Any]) -> dict[str, Any]:
    from radar.cli.decoders import default_prompts

    prompts = 1 + max(text.prompt for text in texts)
    return {
        "command": "radar " + " ".join(sys.argv[1:]),
        "prompts": f"{prompts} of {(args.prompts or default_prompts()).name}",
        "texts": len(texts) // args.repeats,
        "max_new_tokens": args.max_new_tokens,
        "repeats": args.repeats,
        "dtype": str(decoder.model.dtype),
        "total_tokens": decoder.tree.total_tokens,
        "tree_top_k": decoder.tree.tree_top_k,
        "max_calls": decoder.tree.max_calls,
        "policy": repr(decoder.policy),
        "engine": decoder.engine_name,
    }


def _print_json(
    args: argparse.Namespace, decoder: Any, rows: Sequence[Any], texts: Sequence[Any], differences: Sequence[Any]
) -> None:
    from radar.tools.machine import describe_machine

    record = {
        "machine": describe_machine(decoder.model.device),
        "settings": _settings(args, decoder, texts),
        "identical": not differences,
        "differences": [difference.to_dict() for difference in differences],
        "rows": [row.to_dict() for row in rows],
    }
    print(json.dumps(record, indent=2))


def _print(
    args: argparse.Namespace, decoder: Any, rows: Sequence[Any], texts: Sequence[Any], differences: Sequence[Any]
) -> None:
    from radar.policy.fitted import AUTO, EAGLE_BEAMS
    from radar.tools.compare import render
    from radar.tools.differences import render_differences, summarize_differences
    from radar.tools.machine import describe_machine

    device, dtype, settings = decoder.model.device, decoder.model.dtype, _settings(args, decoder, texts)
    beams = decoder.tree.tree_top_k
    other = "" if beams == EAGLE_BEAMS else f" in trees of {EAGLE_BEAMS} beams, ours of {beams}"
    print(
        f"{describe_machine(device)['hardware']}; {str(dtype).removeprefix('torch.')}, {decoder.engine_name} engine, "
        f"trees of {decoder.tree.total_tokens} nodes\n"
        f"EAGLE-3 as {_eagle(decoder)!r}{other}, stop policy {decoder.policy!r}\n"
        f"prompts: {settings['prompts']}, {settings['texts']} texts, {args.max_new_tokens} new tokens at most, "
        f"{args.repeats} repeats, interleaved\n"
    )
    print(render(rows, with_parts=device.type == "cpu"))
    if device.type != "cpu":
        print("\n`radar profile` shows the parts of a round by the card's own clock")
    elif args.target is None and args.policy in (None, AUTO) and (why := _why_behind(*rows[1:])):
        print(f"\n{why}")
    found = summarize_differences(differences, len(texts) * (len(rows) - 1), dtype)
    print(f"\noutputs identical: {'no' if differences else 'yes'}: {found}")
    if differences:
        print(f"\n{render_differences(differences, decoder.tokenizer, PLAIN)}")


def _why_behind(eagle: Any, radar: Any) -> str | None:
    """Why the embedded pair's policy is behind EAGLE-3 on a CPU, in words; None where it is not."""
    if radar.metrics.tokens_per_second >= eagle.metrics.tokens_per_second:
        return None
    parts = radar.milliseconds_per_round
    calls, rest = radar.metrics.draft_calls_per_round, parts["verify"] + parts["accept"]
    call, decision = (100 * parts[part] / calls / rest for part in ("draft", "policy"))
    return (
        "RADAR is behind EAGLE-3 here: its policy is trained for an H200, where a draft call costs 5 % of a round's "
        f"verification and a decision 0.1 %; here they cost {call:.0f} and {decision:.1f} %"
    )
