"""From a command's options to its decoder and its prompts. torch is imported when one of these is called."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from radar.errors import UsageError

__all__ = [
    *("default_prompts", "drafting_decoder", "eagle_decoder", "encoded_prompts", "make_decoder", "plain_decoder"),
    "prompt_lines",
]


def make_decoder(args: argparse.Namespace, **override: Any) -> Any:
    """The RadarDecoder that the options of `add_model_options` name.

    Args:
        args: the options.
        override: arguments of `from_pretrained` that the command decides itself. Without a `--policy` option the policy
            is the deepest `FixedDepth`.
    """
    import torch

    from radar import FixedDepth, RadarDecoder, RadarPolicy
    from radar.decoder import default_device
    from radar.draft.fit import default_tree
    from radar.policy.fitted import AUTO, EAGLE_BEAMS, read_fitted
    from radar.target.launched import launched_ranks
    from radar.target.ranks import own_device

    device = args.device
    if "tp_plan" in override and launched_ranks() > 1:
        device = own_device(device)
    elif (rank := os.environ.get("LOCAL_RANK")) and device is None and torch.cuda.is_available():
        device = f"cuda:{rank}"  # several processes under `accelerate launch`: one GPU each
    device = default_device(device)
    sizes = {name: getattr(args, name) for name in ("total_tokens", "max_calls") if getattr(args, name) is not None}
    fitted = None if args.draft is None else read_fitted(args.draft)
    tree = replace(default_tree(device), tree_top_k=EAGLE_BEAMS if fitted is None else fitted.beams, **sizes)
    policy: Any = getattr(args, "policy", None)
    if not hasattr(args, "policy"):
        policy = FixedDepth(tree.max_calls)
    elif policy is not None and policy.isdigit():
        policy = FixedDepth(int(policy))
    elif policy not in (None, AUTO):
        policy = RadarPolicy(policy)  # and looked at first: a large target takes minutes
        if (reads := policy.network.input_size) != (beams := tree.tree_top_k):
            other = f", or --draft {fitted.draft}, with trees of {reads}" if fitted and reads == EAGLE_BEAMS else ""
            raise UsageError(
                f"--policy {args.policy} reads {reads} scores a level, and the trees have {beams} beams: give a policy "
                f"that was trained for {beams}{other}"
            )
    options = {"engine": args.engine, "max_length": args.max_length} | override
    return RadarDecoder.from_pretrained(
        args.target,
        args.draft,
        policy,
        device=device,
        dtype=getattr(torch, args.dtype) if args.dtype else None,
        tree=tree,
        **options,
    )


def plain_decoder(decoder: Any, args: argparse.Namespace) -> Any:
    """The baseline for a `RadarDecoder`: the same model, engine and compiling."""
    from radar import AutoregressiveDecoder

    return AutoregressiveDecoder(
        decoder.model,
        tokenizer=decoder.tokenizer,
        max_length=decoder.max_length,
        engine=args.engine,
    )


def eagle_decoder(decoder: Any, args: argparse.Namespace, **options: Any) -> Any:
    """EAGLE-3 on the weights of a `RadarDecoder`, in trees of its own beams: `radar fit` may have kept others."""
    from radar import FixedDepth, RadarDecoder
    from radar.policy.fitted import EAGLE_BEAMS

    return RadarDecoder(
        decoder.model,
        draft=decoder.draft,
        tokenizer=decoder.tokenizer,
        policy=FixedDepth(min(8, decoder.tree.max_calls)),
        tree=replace(decoder.tree, tree_top_k=EAGLE_BEAMS),
        max_length=decoder.max_length,
        engine=args.engine,
        fallback=False,
        **options,
    )


def default_prompts() -> Path:
    """The prompts that ship inside the package."""
    from importlib.resources import files

    return Path(str(files("radar"))) / "assets" / "prompts.jsonl"


def prompt_lines(args: argparse.Namespace, tokenizer: Any) -> list[Any]:
    """The `PromptLine`s that the options of `add_prompt_options` name, as this tokenizer can take them.

    Without a chat template chats become plain text of their first turn, which is said on stderr.
    """
    from radar.tools.prompts import PromptLine, has_chat_template, load_prompts

    lines = load_prompts(args.prompts or default_prompts(), limit=args.limit)
    chats = sum(line.chat for line in lines)
    if not chats or has_chat_template(tokenizer):
        return lines
    _note(f"the tokenizer has no chat template: {chats} of {len(lines)} prompts are chats, and taken as plain text")
    return [PromptLine(line.text, chat=False) for line in lines]


def drafting_decoder(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """What a command compares: a decoder that drafts in every round, as plain steps would hide drafts and come and go
    with the clock, and the prompts, all of which its cache can hold with their answers. UsageError: it cannot."""
    from radar.tools.prompts import encode_prompt

    decoder, max_new_tokens = make_decoder(args, fallback=False), args.max_new_tokens
    lines = prompt_lines(args, decoder.tokenizer)
    for number, line in enumerate(lines, start=1):
        turns = len(line.turns)
        room = len(encode_prompt(line, decoder.tokenizer, [""] * (turns - 1))) + turns * max_new_tokens
        if room > decoder.max_length:
            raise UsageError(
                f"prompt {number} with its {turns} turns may need {room} tokens, and the cache holds "
                f"{decoder.max_length}: take fewer --max-new-tokens, or --max-length {room} if the model has that many "
                "positions"
            )
    return decoder, lines


def encoded_prompts(args: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """Token ids of the prompts that the options of `add_prompt_options` name; of a chat with turns, of the first."""
    from radar.tools.prompts import encode_prompt

    lines = prompt_lines(args, tokenizer)
    if later := sum(len(line.later) for line in lines):
        _note(
            f"first turns only: {later} later turns of {sum(bool(line.later) for line in lines)} prompts are left out"
        )
    return [encode_prompt(line, tokenizer) for line in lines]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
