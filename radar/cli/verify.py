"""`radar verify`: is the text the target's own?"""

from __future__ import annotations

import argparse

from radar.cli.arguments import add_model_options, add_progress_option, add_prompt_options

__all__ = ["add_arguments", "run"]

GENERATE = "generate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decodes every prompt with transformers' own generate, and here with and without drafts, all without sampling "
        "and under the model's generation config. For each text that differs it shows the first differing token, both "
        "candidates, the gap between them and whether rounding explains it. Later turns of a prompt are decoded as a "
        "conversation, with generate's answers. Exit status 1 if a difference is not explained."
    )
    add_prompt_options(parser, max_new_tokens=128)
    add_model_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from radar.cli.decoders import drafting_decoder, plain_decoder
    from radar.tools.differences import find_differences, render_differences, summarize_differences
    from radar.tools.stock import StockModel
    from radar.tools.texts import decode_texts

    decoder, lines = drafting_decoder(args)
    stock, plain = StockModel(decoder.model, decoder.tokenizer), plain_decoder(decoder, args)
    length = args.max_new_tokens
    decoders = {
        GENERATE: lambda ids: stock.text(ids, max_new_tokens=length),
        "without drafts": lambda ids: plain.generate(ids, max_new_tokens=length, do_sample=False).token_ids,
        "with drafts": lambda ids: decoder.generate(ids, max_new_tokens=length, do_sample=False).token_ids,
    }
    with tqdm(total=len(lines), desc="prompts", disable=args.no_progress) as bar:
        texts = list(decode_texts(decoders, lines, decoder.tokenizer, bar.update))
    differences = find_differences(texts, stock.scores, stock.dtype)
    if differences:
        print(f"{render_differences(differences, decoder.tokenizer, GENERATE)}\n")
    tokens = sum(len(text.expected) for text in texts)
    print(
        f"{len(texts)} texts of {len(lines)} prompts, {tokens} tokens in {stock.dtype}, against transformers' generate"
    )
    for name in list(decoders)[1:]:
        own = [difference for difference in differences if difference.decoder == name]
        print(f"{name}: {summarize_differences(own, len(texts), stock.dtype)}")
    return 0 if all(difference.is_tie for difference in differences) else 1
