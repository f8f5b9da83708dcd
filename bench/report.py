"""Tables and plots from the files under `bench/results`: `python -m bench.report`. Plots need the `plot` extra.

Writes report.md and one PNG for each figure beside the files. A figure whose file is not there, or was not measured, is
left out and named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.plots import write_plots
from bench.tables import RESULTS, write_tables


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    left_out = write_tables(args.results)
    try:
        import matplotlib
    except ImportError:
        print("bench.report draws with matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for line in [*left_out, *write_plots(args.results, pyplot)]:
        print(f"left out: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
