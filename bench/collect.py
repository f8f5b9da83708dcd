"""Turns what a GPU run left behind into the result files.

python -m bench.collect --kernels BENCHMARK.json --round ROUND.json --commit HASH

`--kernels` is pytest-benchmark's file (`pytest bench/kernels --benchmark-only --benchmark-json BENCHMARK.json`),
`--round` that of `python -m bench.round`. Written: `bench/results/kernels_h200.json` (a row for each benchmark),
`round_h200.json`, and the flat `h200.json` with one figure for each line that the project has set itself.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
KERNEL_KEYS = {
    "tree_attention_64_1k_us": "tree_attention[Llama-3.1-8B-64-1024-triton]",
    "tree_attention_64_4k_us": "tree_attention[Llama-3.1-8B-64-4096-triton]",
    "tree_attention_64_16k_us": "tree_attention[Llama-3.1-8B-64-16384-triton]",
    "tree_attention_16_4k_us": "tree_attention[Llama-3.1-8B-16-4096-triton]",
    "tree_attention_16_32k_us": "tree_attention[Llama-3.1-8B-16-32768-triton]",
    "topk_10x32000_us": "topk_confidence[10x32000-triton]",
    "topk_10x128256_us": "topk_confidence[10x128256-triton]",
    "lstm_step_us": "lstm_step[1x128-triton]",
    "sampling_60x128256_us": "sample_tokens[60x128256-top_p 0.9-triton]",
}


def kernel_rows(benchmarks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{test name without its prefix: its figures}."""
    return {item["name"].removeprefix("test_"): item["extra_info"] for item in benchmarks}


def flat_figures(rows: dict[str, dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """The figures by their keys. Raises KeyError for one that was not measured."""
    short, long = report["parts"][0], report["parts"][-1]
    median = {name: values["median"] for name, values in report["milliseconds"].items()}
    return {
        "ar_ms": median["ar"],
        "verify60_1k_ms": short["verify"],
        "verify60_8k_ms": long["verify"],
        "draft_step_ms": short["draft_step"] + short["decision"],
        "round8_ms": median["fixed8"],
        "decision_us": report["decision_us"],
        "host_syncs_per_round": report["syncs"]["waits_inside_a_round"],
        **{key: rows[name]["us"] for key, name in KERNEL_KEYS.items()},
        "round_t1_over_t0": median["radar8_t1_gpu"] / median["radar8_gpu"],
        "commit": report["machine"]["commit"],
        "command": f"pytest bench/kernels --benchmark-only; {report['command']}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, required=True)
    parser.add_argument("--round", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="that was measured")
    args = parser.parse_args()
    measured, report = json.loads(args.kernels.read_text()), json.loads(args.round.read_text())
    report["machine"]["commit"] = args.commit
    rows = kernel_rows(measured["benchmarks"])
    kernels = {
        "command": "pytest bench/kernels --benchmark-only --benchmark-json FILE",
        "machine": report["machine"],
        "note": "Each row was checked against the reference before it was timed: graph replay of 200 launches, 15 "
        "replays, median; inputs rotate beyond the L2 cache; bytes counted once.",
        "rows": rows,
    }
    flat = flat_figures(rows, report)
    for name, value in (("kernels_h200", kernels), ("round_h200", report), ("h200", flat)):
        (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(flat, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
