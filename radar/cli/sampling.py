"""How tokens are chosen: options of the commands that write text."""

from __future__ import annotations

import argparse
from typing import Any

from radar.errors import UsageError

__all__ = ["add_sampling_options", "generate_options"]

SAMPLES = ("temperature", "top_p", "top_k", "min_p")  # one of these asks for sampling


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """What `generate_options` reads."""
    group = parser.add_argument_group("choice of tokens (default: the model's generation config, else the likeliest)")
    group.add_argument("--temperature", type=float, metavar="T", help="divides the logits; 0 takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens of this probability")
    group.add_argument("--top-k", type=int, metavar="N", help="sample from this many of the likeliest tokens")
    group.add_argument("--min-p", type=float, metavar="P", help="leave out tokens below this share of the likeliest's")
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: against tokens that the text holds already"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of sampling; one seed is one text (default: a new one)")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the output behind this text; may be repeated"
    )


def generate_options(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Keyword arguments of `Decoder.stream`. Where tokens are sampled there is a seed, so that it can be told.

    Args:
        args: the options of `add_sampling_options`.
        model: whose generation config stands behind what is not given.
    """
    given = {name: getattr(args, name) for name in SAMPLES if getattr(args, name) is not None}
    options: dict[str, Any] = {"repetition_penalty": args.repetition_penalty, "stop_strings": args.stop}
    if given.get("temperature") == 0:
        if others := [name for name in given if name != "temperature"]:
            option = f"--{others[0].replace('_', '-')}"
            raise UsageError(f"--temperature 0 takes the likeliest token, where {option} means nothing: leave one out")
        given, samples = {}, False
    else:
        samples = bool(given) or bool(model.generation_config.do_sample)
    if args.seed is not None or samples:
        options["seed"] = _new_seed() if args.seed is None else args.seed
    options = {name: value for name, value in (options | given).items() if value is not None}
    return options | {"do_sample": samples}


def _new_seed() -> int:
    import secrets

    return secrets.randbelow(2**31)
