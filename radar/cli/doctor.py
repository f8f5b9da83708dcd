"""`radar doctor TARGET DRAFT`: how is a head's file to be read?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from radar.cli.arguments import add_device_options, add_progress_option, add_prompt_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Files of draft heads leave things open or misstate them: which layers are tapped and who counts them from "
        "what, the rotary base, where norms stand. A wrong reading drafts badly and says nothing. This measures each "
        "plausible reading on a few prompts and names the settings of the best. Of a head that drafts little however "
        "it is read it says whether it reads this target's features at all."
    )
    parser.add_argument("target", metavar="TARGET", help="target model: folder or hub name")
    parser.add_argument("draft", metavar="DRAFT", help="folder of an EAGLE-3 head for that target, or of a `radar fit`")
    add_prompt_options(parser, limit=8, max_new_tokens=64)
    add_device_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from radar.cli.decoders import encoded_prompts
    from radar.decoder import RadarDecoder, default_device
    from radar.draft.checkpoint import head_folder, load_draft_with_report
    from radar.draft.config import DraftConfig
    from radar.draft.eagle3 import Eagle3Draft
    from radar.policy.base import FixedDepth
    from radar.policy.fitted import unfolded
    from radar.target.load import load_model, load_tokenizer
    from radar.target.quantised import describe
    from radar.tools.doctor import CHAIN, diagnose, render
    from radar.tools.features import FeatureUse, feature_use
    from radar.tools.readings import plausible_readings, target_rope, with_taps

    folder, _, _ = unfolded(args.draft, None)
    head_folder(folder)
    model = load_model(
        args.target, device=default_device(args.device), dtype=getattr(torch, args.dtype) if args.dtype else None
    )
    tokenizer = load_tokenizer(args.target)
    size = int(model.config.hidden_size)
    head, report = load_draft_with_report(
        folder, target_hidden_size=size, device=model.device, dtype=model.dtype, strict=False
    )
    print(report)
    if quantised := describe(model):
        print(f"the target is quantised: {quantised}")
    prompts = encoded_prompts(args, tokenizer)
    num_layers = int(model.config.num_hidden_layers)
    readings = plausible_readings(
        head.config, num_layers=num_layers, rope=target_rope(model.config), doubtful=report.doubtful
    )
    max_length = max(map(len, prompts)) + args.max_new_tokens

    def under(config: DraftConfig) -> Eagle3Draft:
        with torch.device("meta"):  # its weights are copied in, so none are drawn
            draft = Eagle3Draft(config).to(model.dtype).eval().requires_grad_(False)
        draft.to_empty(device=model.device).load_state_dict(head.state_dict())
        return draft

    def make(config: DraftConfig) -> RadarDecoder:
        policy = FixedDepth(CHAIN.max_calls)
        # eager: a few prompts are over before a graph for each reading would be captured and compiled
        return RadarDecoder(
            model,
            draft=under(config),
            tokenizer=tokenizer,
            policy=policy,
            tree=CHAIN,
            max_length=max_length,
            engine="eager",
            fallback=False,
        )

    def use(config: DraftConfig, texts: Sequence[Sequence[int]]) -> FeatureUse:
        return feature_use(model, under(config), texts, [len(prompt) for prompt in prompts])

    with tqdm(total=len(readings), desc="readings", disable=args.no_progress) as bar:
        diagnosis = diagnose(
            with_taps(head.config, num_layers),
            readings,
            make,
            use,
            prompts,
            max_new_tokens=args.max_new_tokens,
            advance=bar.update,
        )
    print(f"\n{len(prompts)} prompts, {args.max_new_tokens} new tokens at most, chains of {CHAIN.max_calls} drafts\n")
    print(render(diagnosis))
    return 0
