"""What a round costs: options of the commands that train and judge policies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from radar.errors import UsageError

__all__ = ["add_cost_options", "batch_costs_of", "costs_of"]

PAPER = "paper-3090"


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cost of a round (one of --costs and the three times is needed)")
    group.add_argument(
        "--costs",
        metavar="FILE",
        help=f"cost table that `radar profile --costs FILE` measured on the device that will decode; the folder of a "
        f"`radar fit`, which has one; or {PAPER}: the paper's own, of Llama-3-8B on two RTX 3090. Of tables by rows "
        "the one of one row, unless --batch is given",
    )
    group.add_argument("--any-device", action="store_true", help="take the table of another device")
    group.add_argument("--call-time", type=float, metavar="T", help="instead of a table: time of one draft call")
    group.add_argument("--decision-time", type=float, metavar="T", help="time of one stop decision, same unit")
    group.add_argument("--rest-time", type=float, metavar="T", help="time of the rest of a round, same unit")


def costs_of(args: argparse.Namespace) -> Any:
    """The `CostTable` that the options of `add_cost_options` name. UsageError: they name none."""
    times = (args.call_time, args.decision_time, args.rest_time)
    timed = any(value is not None for value in times)
    if timed and (None in times or args.costs is not None):
        raise UsageError("give --costs, or --call-time, --decision-time and --rest-time together in one unit")
    if not timed and args.costs is None:
        raise UsageError(
            "what a call costs decides when it pays, so --costs is needed: measure a table on the device that will "
            "decode with `radar profile --costs costs.json` (and --target, --draft of your models), or name the "
            f"paper's cards with --costs {PAPER}"
        )

    from radar.tools.costs import CostTable

    if timed:
        return CostTable.constant(call=times[0], decision=times[1], rest=times[2])
    if args.costs == PAPER:
        return CostTable.paper()
    return batch_costs_of(args).of(1)


def batch_costs_of(args: argparse.Namespace) -> Any:
    """The `BatchCosts` in the file that --costs names. UsageError: it names none."""
    if args.costs in (None, PAPER):
        raise UsageError(
            "rounds of several rows need --costs with their times: measure them on the device that will decode with "
            "`radar profile --batch 1 2 4 8 16 32 --costs costs.json`"
        )

    from radar.decoder import default_device
    from radar.policy.fitted import read_fitted
    from radar.tools.batch_costs import BatchCosts
    from radar.tools.machine import device_name

    fitted = read_fitted(args.costs)
    path = Path(args.costs) if fitted is None else fitted.costs
    return BatchCosts.load(path, device=None if args.any_device else device_name(default_device()))
