"""report.md, the plots and README's table from the files under `bench/results`: `python -m bench.report`, behind
`python -m bench.headline`. Drawing needs the `plot` extra.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from bench.headline import read
from bench.sections import readme_table, report
from bench.tables import RESULTS

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- table: bench\.report -->\n).*?(<!-- end -->)", re.DOTALL)


def with_table(readme: str, table: str) -> str:
    """The text with this table between its two marks. ValueError if they are not there once."""
    text, times = BLOCK.subn(lambda found: found[1] + table + found[2], readme)
    if times != 1:
        raise ValueError(f"README has {times} places for the table: write the two marks {BLOCK.pattern} once")
    return text


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    args = parser.parse_args(argv)
    (args.results / "report.md").write_text(report(args.results), encoding="utf8")
    readme = with_table(args.readme.read_text(encoding="utf8"), readme_table(args.results))
    args.readme.write_text(readme, encoding="utf8")
    try:
        import matplotlib
    except ImportError:
        print("bench.report draws with matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    from bench.plots import draw

    for name, figure in draw(read(args.results), args.results, pyplot).items():
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=110)
        Image.open(drawn).convert("RGB").quantize(48).save(args.results / name, optimize=True)  # a quarter of the bytes
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
