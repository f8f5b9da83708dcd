"""What several commands do with their arguments."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["plain_decoder", "positive"]


def positive(text: str) -> int:
    """A number of things, at least one."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {text!r}")
    return value


def plain_decoder(decoder: Any, args: argparse.Namespace) -> Any:
    """The baseline for a `RadarDecoder`: the same model, engine and compiling."""
    from radar.autoregressive import AutoregressiveDecoder

    return AutoregressiveDecoder(
        decoder.model,
        tokenizer=decoder.tokenizer,
        max_length=decoder.max_length,
        engine=args.engine,
        compile=not args.no_compile,
    )
