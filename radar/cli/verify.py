"""`radar verify`: is the text the target's own?"""

from __future__ import annotations

import argparse

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decodes every prompt with and without drafts. For each text that differs it shows the first differing token, "
        "both candidates, the gap between their logits and whether rounding explains it. Exit status 1 if one is not "
        "explained."
    )
    add_prompt_options(parser, max_new_tokens=128)
    add_model_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from radar.cli.decoders import encoded_prompts, make_decoder, plain_decoder
    from radar.tools.verify import compare_texts, plain_logits, render

    # drafts in every round: plain steps would hide them, and a difference might come and go with the clock
    decoder = make_decoder(args, fallback=False)
    plain = plain_decoder(decoder, args)
    prompts = encoded_prompts(args, decoder.tokenizer)
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
