"""Is the draft head's confidence true? `python -m bench.lab.calibration --rounds .lab/rounds2/*.jsonl`.

The summed probability of the beam after call n claims that the target's n-th token is in the tree; here are the claims
in ten bins, and how often it was. Writes bench/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from radar.tools.machine import describe_machine
from radar.train.dataset import RoundDataset, read_rounds

BINS = 10
CALLS = (1, 2, 4, 8, 12)


def calibration(rounds: RoundDataset, call: int) -> list[dict[str, float]]:
    """Bins of the claimed probability after `call`: their mean claim, the observed share, and rounds."""
    claimed = rounds.scores[:, call - 1].exp().sum(-1).double()
    if rounds.distribution is None:
        reached = (rounds.accept_lengths[:, call - 1] >= call).double()
    else:
        reached = rounds.distribution[:, call - 1, call:].sum(-1).double()
    index = (claimed * BINS).long().clamp(0, BINS - 1)
    found = []
    for number in range(BINS):
        here = index == number
        if here.any():
            found.append(
                {
                    "claimed": claimed[here].mean().item(),
                    "observed": reached[here].mean().item(),
                    "rounds": int(here.sum()),
                }
            )
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "calibration.json")
    args = parser.parse_args(argv)
    rounds = read_rounds(args.rounds)
    report: dict[str, Any] = {
        "command": command_line("bench.lab.calibration", argv),
        "machine": describe_machine(torch.device("cpu")),
        "rounds": len(rounds),
        "temperature": rounds.header.temperature,
        "calls": {str(call): calibration(rounds, call) for call in CALLS if call <= rounds.scores.shape[1]},
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
