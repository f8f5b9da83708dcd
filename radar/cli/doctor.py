"""`radar doctor` and `radar verify`: options of the commands, and the calls they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from radar.cli.arguments import plain_decoder, positive

__all__ = ["add_doctor", "add_verify"]


def add_doctor(commands: Any) -> None:
    """`radar doctor TARGET DRAFT`."""
    parser = commands.add_parser(
        "doctor",
        help="find out how a draft head's file is to be read, by measuring",
        description="Files of draft heads leave things open or misstate them: which layers are tapped and who counts "
        "them from what, the rotary base, where norms stand. A wrong reading drafts badly and says nothing. This "
        "measures each plausible reading on a few prompts and names the settings of the best.",
    )
    parser.add_argument("target", metavar="TARGET", help="target model: folder or hub name")
    parser.add_argument("draft", metavar="DRAFT", help="folder of an EAGLE-3 head for that target")
    _prompt_options(parser, limit=8, max_new_tokens=64)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: the checkpoint's")
    parser.set_defaults(run=_doctor)


def add_verify(
    commands: Any,
    model_options: Callable[[argparse.ArgumentParser], None],
    decoder: Callable[..., Any],
) -> None:
    """`radar verify`.

    Args:
        model_options: adds the options that name models, as other commands have them.
        decoder: makes the RadarDecoder that they name.
    """
    parser = commands.add_parser(
        "verify",
        help="check on your prompts that the text is the target's own",
        description="Decodes every prompt with and without drafts. For each text that differs it shows the first "
        "differing token, both candidates, the gap between their logits and whether rounding explains it. Exit status "
        "1 if one is not explained.",
    )
    _prompt_options(parser, limit=None, max_new_tokens=128)
    model_options(parser)
    # drafts in every round: plain steps would hide them, and a difference might come and go with the clock
    parser.set_defaults(run=lambda args: _verify(args, decoder(args, fallback=False)))


def _prompt_options(parser: argparse.ArgumentParser, *, limit: int | None, max_new_tokens: int) -> None:
    parser.add_argument("--prompts", type=Path, metavar="FILE", help='JSON lines with "prompt", or MT-bench\'s "turns"')
    parser.add_argument(
        "--limit",
        type=positive,
        default=limit,
        metavar="N",
        help=f"take the first N prompts (default {limit or 'all'})",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"limit of each output (default {max_new_tokens})",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar on stderr")


def _prompts(args: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    from importlib.resources import files

    from radar.tools.prompts import encode_prompt, load_prompts

    path = args.prompts or Path(str(files("radar"))) / "assets" / "prompts.jsonl"
    return [encode_prompt(line, tokenizer) for line in load_prompts(path, limit=args.limit)]


def _doctor(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from radar.decoder import RadarDecoder, default_device
    from radar.draft.checkpoint import load_draft_with_report
    from radar.draft.config import DraftConfig
    from radar.draft.eagle3 import Eagle3Draft
    from radar.policy.base import FixedDepth
    from radar.target.load import load_model, load_tokenizer
    from radar.tools.doctor import CHAIN, diagnose, plausible_readings, render, target_rope, with_taps

    model = load_model(
        args.target, device=default_device(args.device), dtype=getattr(torch, args.dtype) if args.dtype else None
    )
    tokenizer = load_tokenizer(args.target)
    size = int(model.config.hidden_size)
    head, report = load_draft_with_report(
        args.draft, target_hidden_size=size, device=model.device, dtype=model.dtype, strict=False
    )
    print(report)
    prompts = _prompts(args, tokenizer)
    num_layers = int(model.config.num_hidden_layers)
    readings = plausible_readings(
        head.config, num_layers=num_layers, rope=target_rope(model.config), doubtful=report.doubtful
    )
    max_length = max(map(len, prompts)) + args.max_new_tokens

    def make(config: DraftConfig) -> RadarDecoder:
        with torch.device("meta"):  # its weights are copied in, so none are drawn
            draft = Eagle3Draft(config).to(model.dtype).eval().requires_grad_(False)
        draft.to_empty(device=model.device).load_state_dict(head.state_dict())
        policy = FixedDepth(CHAIN.max_calls)
        # eager: a few prompts are over before a graph for each reading would be captured and compiled
        return RadarDecoder(
            model,
            draft=draft,
            tokenizer=tokenizer,
            policy=policy,
            tree=CHAIN,
            max_length=max_length,
            engine="eager",
            fallback=False,
        )

    with tqdm(total=len(readings), desc="readings", disable=args.no_progress) as bar:
        diagnosis = diagnose(
            with_taps(head.config, num_layers),
            readings,
            make,
            prompts,
            max_new_tokens=args.max_new_tokens,
            advance=bar.update,
        )
    print(f"\n{len(prompts)} prompts, {args.max_new_tokens} new tokens at most, chains of {CHAIN.max_calls} drafts\n")
    print(render(diagnosis))
    return 0


def _verify(args: argparse.Namespace, decoder: Any) -> int:
    from tqdm import tqdm

    from radar.tools.verify import compare_texts, plain_logits, render

    plain = plain_decoder(decoder, args)
    prompts = _prompts(args, decoder.tokenizer)
    with tqdm(total=len(prompts), desc="prompts", disable=args.no_progress) as bar:
        comparison = compare_texts(
            decoder,
            plain,
            plain_logits(decoder.model),
            prompts,
            max_new_tokens=args.max_new_tokens,
            advance=bar.update,
        )
    print(render(comparison, decoder.tokenizer))
    return 0 if comparison.is_lossless else 1
