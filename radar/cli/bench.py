"""`radar bench`: what compares plain decoding, EAGLE-3 and RADAR on the same prompts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options, positive

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs the three decoders in turn on every prompt and prints tokens per second, acceptance, draft calls, a "
        "histogram of stops and whether all outputs are identical. Exit status 1 if they are not."
    )
    add_prompt_options(parser, max_new_tokens=128)
    parser.add_argument("--repeats", type=positive, default=1, metavar="N", help="passes over the prompts (default 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_model_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from radar import FixedDepth, RadarPolicy
    from radar.cli.decoders import default_prompts, encoded_prompts, make_decoder, plain_decoder
    from radar.tools.compare import Contender, compare, render
    from radar.tools.machine import describe_machine

    decoder = make_decoder(args, fallback=False)  # what is compared drafts in every round
    plain = plain_decoder(decoder, args)
    radar, eagle = decoder.policy, FixedDepth(min(8, decoder.tree.max_calls))
    ours = "RADAR" if isinstance(radar, RadarPolicy) else repr(radar)

    def use(policy: Any) -> Any:
        return lambda: setattr(decoder, "policy", policy)

    contenders = [
        Contender("autoregressive", plain),
        Contender("EAGLE-3", decoder, use(eagle)),
        Contender(ours, decoder, use(radar)),
    ]
    prompts = encoded_prompts(args, decoder.tokenizer)
    with tqdm(total=len(prompts) * args.repeats, desc="prompts", disable=args.no_progress) as bar:
        rows, identical = compare(
            contenders, prompts, max_new_tokens=args.max_new_tokens, repeats=args.repeats, advance=bar.update
        )
    device = decoder.engine.target.device
    settings = {
        "command": "radar " + " ".join(sys.argv[1:]),
        "prompts": f"{len(prompts)} of {(args.prompts or default_prompts()).name}",
        "max_new_tokens": args.max_new_tokens,
        "repeats": args.repeats,
        "dtype": str(decoder.engine.target.dtype),
        "total_tokens": decoder.tree.total_tokens,
        "tree_top_k": decoder.tree.tree_top_k,
        "max_calls": decoder.tree.max_calls,
        "policy": repr(radar),
        "engine": decoder.engine_name,
    }
    if args.json:
        record = {"machine": describe_machine(device), "settings": settings, "identical": identical}
        print(json.dumps(record | {"rows": [row.to_dict() for row in rows]}, indent=2))
    else:
        machine = describe_machine(device)
        print(
            f"{machine['hardware']}; {settings['dtype'].removeprefix('torch.')}; "
            f"tree of {decoder.tree.total_tokens} nodes; EAGLE-3 as {eagle!r}, stop policy {radar!r}"
        )
        print(f"{settings['prompts']}, {args.max_new_tokens} new tokens at most, {args.repeats} repeats, interleaved\n")
        print(render(rows, identical))
        print(_where_time_goes(rows, on_gpu=device.type == "cuda"))
    return 0 if identical else 1


def _where_time_goes(rows: Sequence[Any], *, on_gpu: bool) -> str:
    """One plain paragraph from the measured parts. On a GPU `radar profile` tells them, by the card's own clock."""
    plain, _, radar = rows
    ratio = radar.metrics.tokens_per_second / plain.metrics.tokens_per_second
    verdict = "faster" if ratio > 1 else "slower"
    measured = f"Measured here, {radar.name} runs at {ratio:.2f} times the autoregressive speed ({verdict})."
    if on_gpu or "verify" not in radar.milliseconds_per_round:  # a text of one token has no rounds
        return f"\n{measured} `radar profile` shows the parts of a round."
    one = plain.milliseconds_per_round["verify"]
    parts = radar.milliseconds_per_round
    return (
        f"\nA target pass takes {one:.2f} ms for one token and {parts['verify']:.2f} ms for the tree; "
        f"{radar.metrics.draft_calls_per_round:.2f} draft calls add {parts['draft']:.2f} ms and their stop decisions "
        f"{parts['policy']:.2f} ms.\n{measured}"
    )
