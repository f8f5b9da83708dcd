"""The `radar` command: generate, bench, record, train-draft, train-policy, evaluate, profile, doctor, verify."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from radar.cli.arguments import plain_decoder, positive

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Errors of the user's making end with one line on stderr and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        result: int = args.run(args)
        return result
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, OSError) as error:
        print(f"radar {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _generate(args: argparse.Namespace) -> int:
    decoder = _decoder(args)
    prompt: Any = args.prompt
    if args.chat:
        from radar.tools.prompts import PromptLine, encode_prompt

        prompt = encode_prompt(PromptLine(args.prompt, chat=True), decoder.tokenizer)
    elif not args.no_echo:
        print(args.prompt, end="", flush=True)
    stream = decoder.stream(prompt, max_new_tokens=args.max_new_tokens)
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    m = stream.output.metrics
    plain = f", {m.num_fallback_tokens} tokens by plain steps" if m.num_fallback_tokens else ""
    print(
        f"[{m.num_tokens} tokens, {m.tokens_per_second:.1f} tokens/s, {m.mean_acceptance_length:.2f} tokens per target "
        f"pass, {m.draft_calls_per_round:.2f} draft calls per round{plain}]",
        file=sys.stderr,
    )
    return 0


def _bench(args: argparse.Namespace) -> int:
    from importlib.resources import files

    from tqdm import tqdm

    from radar import FixedDepth, RadarPolicy
    from radar.tools.compare import Contender, compare, describe_machine, render
    from radar.tools.prompts import encode_prompt, load_prompts

    path = args.prompts or Path(str(files("radar"))) / "assets" / "prompts.jsonl"
    lines = load_prompts(path, limit=args.limit)
    decoder = _decoder(args, fallback=False)  # what is compared drafts in every round
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
    prompts = [encode_prompt(line, decoder.tokenizer) for line in lines]
    with tqdm(total=len(prompts) * args.repeats, desc="prompts", disable=args.no_progress) as bar:
        rows, identical = compare(
            contenders, prompts, max_new_tokens=args.max_new_tokens, repeats=args.repeats, advance=bar.update
        )
    device = decoder.engine.target.device
    settings = {
        "command": "radar " + " ".join(sys.argv[1:]),
        "prompts": f"{len(prompts)} of {Path(path).name}",
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


def _record(args: argparse.Namespace) -> int:
    from radar.tools.prompts import encode_prompt, load_prompts
    from radar.train.record import record

    # eager: the recorder makes graphs of its own
    decoder = _decoder(args, policy=None, engine="eager", fallback=False)
    prompts = [encode_prompt(line, decoder.tokenizer) for line in load_prompts(args.prompts, limit=args.limit)]
    result = record(
        decoder,
        prompts,
        args.out,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        metadata={"target": args.target or "embedded", "draft": args.draft or "embedded"},
        every_token=args.every_token,
        progress=not args.no_progress,
    )
    print(json.dumps(result))
    return 0


def _train_draft(args: argparse.Namespace) -> int:
    from radar.cli.train import train_draft_command

    print(json.dumps(train_draft_command(args)))
    return 0


def _train_policy(args: argparse.Namespace) -> int:
    from radar.cli.train import train_policy_command

    print(json.dumps(train_policy_command(args)))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from radar.cli.train import evaluate_command

    print(evaluate_command(args))
    return 0


def _decoder(args: argparse.Namespace, **override: Any) -> Any:
    import torch

    from radar import FixedDepth, RadarDecoder
    from radar.decoder import default_device, default_tree

    rank = os.environ.get("LOCAL_RANK")  # several processes under `accelerate launch`: one GPU each
    device = default_device(args.device or (f"cuda:{rank}" if rank and torch.cuda.is_available() else None))
    base = default_tree(device)
    sizes = {name: getattr(args, name) for name in ("total_tokens", "max_calls") if getattr(args, name) is not None}
    tree = replace(base, **sizes)
    policy: Any = getattr(args, "policy", None)
    if "policy" in override:
        policy = FixedDepth(tree.max_calls)
    elif policy is not None and policy.isdigit():
        policy = FixedDepth(int(policy))
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return RadarDecoder.from_pretrained(
        args.target,
        args.draft,
        policy,
        device=device,
        dtype=dtype,
        tree=tree,
        max_length=args.max_length,
        engine=override.get("engine", args.engine),
        compile=not args.no_compile,
        fallback=override.get("fallback", True),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="radar",
        description="Lossless speculative decoding with EAGLE-3 draft trees and a learned stop policy.",
        epilog="Without --target every command uses the small pair that ships inside the package.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="continue a prompt and stream the text")
    generate.add_argument("prompt", help="text to continue")
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    generate.add_argument("--no-echo", action="store_true", help="print only the new text, not the prompt before it")
    generate.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="limit of the output (default 256)"
    )
    _model_options(generate)
    generate.set_defaults(run=_generate)

    bench = commands.add_parser(
        "bench",
        help="compare autoregressive decoding, EAGLE-3 and RADAR on the same prompts",
        description="Runs the three decoders in turn on every prompt and prints tokens per second, acceptance, draft "
        "calls, a histogram of stops and whether all outputs are identical. Exit status 1 if they are not.",
    )
    bench.add_argument("--prompts", type=Path, metavar="FILE", help='JSON lines with "prompt", or MT-bench\'s "turns"')
    bench.add_argument("--limit", type=positive, metavar="N", help="take the first N prompts")
    bench.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="limit of each output (default 128)"
    )
    bench.add_argument("--repeats", type=positive, default=1, metavar="N", help="passes over the prompts (default 1)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    _model_options(bench)
    _progress_option(bench)
    bench.set_defaults(run=_bench)

    record = commands.add_parser(
        "record",
        help="record draft rounds at full depth, to train a policy on",
        description="Decodes the prompts with every round drafted to --max-calls, and writes for each round the scores "
        "that a policy reads and the accepted length for every stop. Resumes where an interrupted run ended.",
    )
    record.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSON lines, as for bench")
    record.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="data set to write or go on with (.jsonl)"
    )
    record.add_argument("--limit", type=positive, metavar="N", help="take the first N prompts")
    record.add_argument("--max-new-tokens", type=int, default=192, metavar="N", help="per prompt (default 192)")
    record.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="of the text; above 0 the distribution of the accepted length is recorded (default 0: greedy)",
    )
    record.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled text (default 0)")
    record.add_argument(
        "--every-token",
        action="store_true",
        help="a round at every token, several times as many: `radar evaluate` then replays just what decoding would do",
    )
    _model_options(record, policy=False)
    _progress_option(record)
    record.set_defaults(run=_record)

    from radar.cli.train import add_evaluate, add_train_draft, add_train_policy

    add_train_draft(commands).set_defaults(run=_train_draft)
    add_train_policy(commands).set_defaults(run=_train_policy)
    add_evaluate(commands).set_defaults(run=_evaluate)

    from radar.cli.doctor import add_doctor, add_verify
    from radar.cli.profile import add_profile

    add_doctor(commands)
    add_verify(commands, _model_options, _decoder)
    add_profile(commands, _model_options, _decoder)
    return parser


def _model_options(parser: argparse.ArgumentParser, *, policy: bool = True) -> None:
    group = parser.add_argument_group("models")
    group.add_argument("--target", metavar="PATH", help="target model: folder or hub name (default: the embedded pair)")
    group.add_argument("--draft", metavar="PATH", help="folder of an EAGLE-3 head for that target")
    if policy:
        group.add_argument(
            "--policy", metavar="PATH|N", help="folder or file of a stop policy, or a number of draft calls for EAGLE-3"
        )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    group.add_argument(
        "--engine",
        choices=("graph", "eager"),
        help="one CUDA graph a round, or steps from Python (default: graph on a GPU)",
    )
    group.add_argument("--no-compile", action="store_true", help="start faster and run slower: no torch.compile")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the checkpoint's")
    group.add_argument(
        "--total-tokens", type=int, metavar="N", help="nodes verified per round (default 60, 32 on a CPU)"
    )
    group.add_argument("--max-calls", type=int, metavar="N", help="most draft calls per round (default 16)")
    group.add_argument("--max-length", type=int, metavar="N", help="prompt and output together (default 2048)")


def _progress_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")


if __name__ == "__main__":
    sys.exit(main())
