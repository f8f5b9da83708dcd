"""What a round costs: options of the commands that train and judge policies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from radar.errors import UsageError

__all__ = ["add_cost_options", "costs_of"]


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cost of a round (default: the paper's)")
    group.add_argument("--costs", type=Path, metavar="FILE", help="cost table of this device (.json)")
    group.add_argument("--any-device", action="store_true", help="take the table of another device")
    group.add_argument("--call-time", type=float, metavar="T", help="instead of a table: time of one draft call")
    group.add_argument("--decision-time", type=float, metavar="T", help="time of one stop decision, same unit")
    group.add_argument("--rest-time", type=float, metavar="T", help="time of the rest of a round, same unit")


def costs_of(args: argparse.Namespace) -> Any:
    """The `CostTable` that the options of `add_cost_options` name."""
    from radar.decoder import default_device
    from radar.tools.machine import device_name
    from radar.train.costs import CostTable

    times = (args.call_time, args.decision_time, args.rest_time)
    if any(value is not None for value in times):
        if None in times or args.costs is not None:
            raise UsageError("give --costs, or --call-time, --decision-time and --rest-time together in one unit")
        return CostTable.constant(call=times[0], decision=times[1], rest=times[2])
    if args.costs is None:
        return CostTable.paper()
    device = None if args.any_device else device_name(default_device())
    return CostTable.load(args.costs, device=device)
