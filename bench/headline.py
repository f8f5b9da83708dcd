"""The figures of the comparison in one flat object: `python -m bench.headline` writes summary.json of the result files.

Ratios are geometric means over cells (a task at a large model's shapes), by replay of all measuring prompts; those that
end in `_decoded` are of prompts that were decoded on the card. KEY_low and KEY_high bound 95 %, prompts drawn anew, a
prompt once for all shapes; KEY_n_cells and KEY_n_prompts say of how many. Keys that begin with `laboratory_` are of the
pair that ships, at Llama-3.1-8B's shapes; all others of the released model. What was not measured is not there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bench.intervals import Interval, bounded, over, ratios
from bench.runs import AUTOREGRESSIVE, RADAR, Kept, Run, cells_of, kept, key_of
from bench.tables import ALPHA, BOUNDS, LABORATORY, OWN, PAIRS, RESULTS, load

__all__ = ["EAGLE3", "Found", "compared", "counted", "peer_rates", "peer_runs", "rate", "read", "summarise"]

DECODED, REPLAYED = "end_to_end/released_runs.jsonl.xz", "replay/released_runs.jsonl.xz"
PEERS, SUMMARY = "end_to_end/peers_h200.json", "end_to_end/summary.json"
SAME_NODES = "radar_60"
EAGLE3, HINDSIGHT, KNOWING, FIXED = "eagle3", "hindsight", "knowing", "best_fixed_hindsight"
REFERENCES = (EAGLE3, FIXED, "best_fixed", "threshold", "threshold_nodes", "published", AUTOREGRESSIVE)
TEMPERATURES = (0.0, 1.0)
PEERS_PAIR = "llama"  # whose checkpoint the peers were given
Cells = Sequence[Sequence[Run]]


class Found(NamedTuple):
    """What was measured; `peers`: runs of other libraries, `own`: replay of rounds recorded from what decoded."""

    decoded: Kept
    replayed: list[Run]
    peers: list[Run]
    own: Sequence[Run] = ()


def read(results: Path = RESULTS, pairs: Collection[str] = tuple(PAIRS)) -> Found:
    """What the result files hold of these pairs; what is not there is empty."""
    peers = load(PEERS, results)["runs"] if PEERS_PAIR in pairs and (results / PEERS).is_file() else []
    decoded, replayed = (kept(results / name) for name in (DECODED, REPLAYED))
    own = [{**run, "pair": run["pair"].removesuffix(OWN)} for run in replayed.alone if run["pair"].endswith(OWN)]
    alone, own = ([run for run in part if run["pair"] in pairs] for part in (replayed.alone, own))
    return Found(Kept(*([run for run in part if run["pair"] in pairs] for part in decoded)), alone, peers, own)


def compared(runs: Iterable[Run], temperature: float, method: str, reference: str) -> tuple[Interval, Cells] | None:
    """Speed of a method over another's on the prompts that both have, and the cells; None if there are none."""
    cells = cells_of(runs, temperature, method, reference)
    return (over(cells, method, reference), cells) if cells else None


def rate(found: Found, method: str, rows: int, pair: str = PEERS_PAIR) -> float | None:
    """Tokens a second of all texts together, so many at a time: the median of its turns."""
    wanted = (pair, method, rows)
    own = [one for one in found.decoded.together if (one["pair"], one["method"], one["rows"]) == wanted]
    return statistics.median(one["tokens"] / one["seconds"] for one in own) if own else None


def peer_rates(found: Found) -> dict[tuple[str, int], float]:
    """The same of other libraries, by name and rows."""
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in found.peers:
        speeds[name_of(one), one["rows_at_once"]].append(float(one["tokens_per_second"]))
    return {key: statistics.median(several) for key, several in speeds.items()}


def counted(runs: Iterable[Run], top: str, bottom: str) -> list[Run]:
    """The runs with two other counts where a speed has tokens and seconds."""
    return [{**run, "tokens": run[top], "seconds": run[bottom]} for run in runs]


def summarise(found: Found) -> dict[str, Any]:
    """All figures that these runs allow."""
    out: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        at = f"t{temperature:g}"
        for suffix, runs in (("", found.replayed), ("_decoded", found.decoded.alone)):
            for reference in REFERENCES:
                out |= _told(f"radar_over_{reference}_{at}{suffix}", compared(runs, temperature, RADAR, reference))
        out |= _changes(found.replayed, temperature)
        out |= _gaps(found.replayed, temperature)
        out |= _fastest(found.replayed, temperature)
        out |= _over_plain(found.decoded.alone, temperature)
    return out | _over_peers(found) | _replay_errors(found) | _texts(found.decoded)


def _told(key: str, result: tuple[Interval, Cells] | None) -> dict[str, Any]:
    if result is None:
        return {}
    (value, low, high), cells = result
    prompts = {(run["task"], run["prompt"]) for cell in cells for run in cell}
    out = {key: value, f"{key}_low": low, f"{key}_high": high}
    return out | {f"{key}_n_cells": len(cells), f"{key}_n_prompts": len(prompts)}


def _changes(runs: Sequence[Run], temperature: float) -> dict[str, Any]:
    """Draft calls and tokens of a round against EAGLE-3's, less 1, also where RADAR verifies as many nodes. At
    temperature 0 without it in the name."""
    out, suffix = {}, "" if temperature == 0 else f"_t{temperature:g}"
    for key, count in (("draft_calls_change", "calls"), ("acceptance_change", "tokens")):
        for method, nodes in ((RADAR, ""), (SAME_NODES, "_60_nodes")):
            if result := compared(counted(runs, count, "rounds"), temperature, method, EAGLE3):
                out |= _told(key + nodes + suffix, (Interval(*(one - 1 for one in result[0])), result[1]))
    return out


def _gaps(runs: Sequence[Run], temperature: float) -> dict[str, Any]:
    """The part of the way from the best fixed setting in hindsight to an oracle that RADAR goes."""
    out = {}
    for key, oracle in (
        ("oracle_gap_closed", KNOWING),  # whose probabilities are recorded above temperature 0 alone
        (f"oracle_gap_closed_hindsight_t{temperature:g}", HINDSIGHT),
    ):
        if cells := cells_of(runs, temperature, RADAR, FIXED, oracle):
            (ours, mine), (most, bound) = (ratios(cells, name, FIXED) for name in (RADAR, oracle))
            out |= _told(key, (bounded((ours - 1) / (most - 1), (mine - 1) / (bound - 1)), cells))
    return out


def _fastest(runs: Sequence[Run], temperature: float) -> dict[str, Any]:
    """Of the methods that every cell has, oracles aside."""
    methods = {run["method"] for run in runs if run["temperature"] == temperature} - set(BOUNDS)
    speeds = {
        name: result for name in methods - {EAGLE3} if (result := compared(runs, temperature, name, EAGLE3)) is not None
    }
    most = max((len(cells) for _, cells in speeds.values()), default=0)
    judged = {name: one.value for name, (one, cells) in speeds.items() if len(cells) == most and ALPHA not in name}
    return {f"fastest_t{temperature:g}": max(judged, key=lambda name: judged[name])} if judged else {}


def _over_plain(runs: Sequence[Run], temperature: float) -> dict[str, Any]:
    """The slowest and the fastest cell. At temperature 0 without it in the name."""
    out, suffix = {}, "" if temperature == 0 else f"_t{temperature:g}"
    cells = cells_of(runs, temperature, RADAR, AUTOREGRESSIVE)
    judged = [(over([cell], RADAR, AUTOREGRESSIVE), [cell]) for cell in cells]
    for end, of in (("min", min), ("max", max)):
        out |= _told(f"radar_over_ar_{end}{suffix}", of(judged, key=lambda one: one[0].value, default=None))
    return out


def peer_runs(found: Found) -> Iterator[Run]:
    """Texts of the peers, one at a time, as runs. Greedy texts are one length, so plain decoding tells it where they
    do not: in their share of what the peer counted."""
    plain = {
        (run["task"], run["prompt"]): run["tokens"]
        for run in found.decoded.alone
        if (run["pair"], run["temperature"], run["method"]) == (PEERS_PAIR, 0.0, AUTOREGRESSIVE)
    }
    for peer in found.peers:
        if peer["rows_at_once"] != 1:
            continue
        numbers: Counter[str] = Counter()
        runs = []
        for row in peer["rows"]:
            key = row["task"], numbers[row["task"]]
            numbers[row["task"]] += 1
            if (tokens := row.get("tokens", plain.get(key))) is not None:
                runs.append({"task": key[0], "prompt": key[1], "tokens": tokens, "seconds": row["seconds"]})
        share = peer["tokens"] / max(1, sum(run["tokens"] for run in runs)) if len(runs) == len(peer["rows"]) else 1.0
        about = {"pair": PEERS_PAIR, "temperature": 0.0, "method": name_of(peer)}
        yield from (about | run | {"tokens": run["tokens"] * share} for run in runs)


def name_of(peer: Run) -> str:
    """What tells a peer's settings apart."""
    if "steps" in peer:  # SGLang's, by as many branches
        shape = f"tree of {peer['steps']} x {peer['topk']}" if peer["topk"] > 1 else f"{peer['steps']} drafts"
        return f"{peer['peer']}, {shape}"
    return f"{peer['peer']}, {peer['k']} drafts" if peer.get("k") else str(peer["peer"])


def _over_peers(found: Found) -> dict[str, Any]:
    """RADAR on the same checkpoint and prompts: of several rows all texts together, which has no interval."""
    ours = [run for run in found.decoded.alone if run["pair"] == PEERS_PAIR] + list(peer_runs(found))
    out: dict[str, Any] = {}

    def fastest(rows: int, *words: str) -> tuple[float, str] | None:
        own = [(one, key[0]) for key, one in peer_rates(found).items() if key[1] == rows]
        return max((one for one in own if all(word in one[1] for word in words)), default=None)

    best = {"vllm_best": ("vllm",), "sglang_best": ("sglang",), "generate_static": ("generate", "static")}
    for key, words in best.items():
        if peer := fastest(1, *words):
            at = "" if key == "generate_static" else "_b1"
            out |= _told(f"radar_over_{key}{at}", compared(ours, 0.0, RADAR, peer[1]))
    for rows in sorted({run["rows"] for run in found.decoded.together}):
        for method, (key, words) in product((RADAR, "threshold"), best.items()):
            if (own := rate(found, method, rows)) and (peer := fastest(rows, *words)):
                out[f"{method}_over_{key}_b{rows}"] = own / peer[0]
    return out


def _replay_errors(found: Found) -> dict[str, Any]:
    """Replay's ratio of RADAR to EAGLE-3 over decoding's, less 1, on the prompts that were decoded greedily: of the
    same texts, and of the small model's. Of the same texts how many generations have as many rounds and calls.

    Replay prices rounds alone: decoding's leaves the prompt's pass and its token out."""
    there = {key_of(run): run for run in found.decoded.alone}
    both = [(run, there[key_of(run)]) for run in found.own if key_of(run) in there]
    alike = [all(run[name] == other[name] for name in ("rounds", "calls")) for run, other in both]
    out = {"replayed_compared": len(alike), "replayed_identical": sum(alike)} if alike else {}
    for name, runs in (("replay_error", found.own), ("replay_small_error", found.replayed)):
        out |= _errors(name, found.decoded.alone, runs)
    return out


def _errors(name: str, decoded: Sequence[Run], replayed: Sequence[Run]) -> dict[str, Any]:
    rounds = [
        {**run, "tokens": run["tokens"] - 1, "seconds": run["seconds"] - run["prefill_seconds"]} for run in decoded
    ]
    errors = {}
    for pair in sorted({run["pair"] for run in rounds}):
        was = compared([run for run in rounds if run["pair"] == pair], 0.0, RADAR, EAGLE3)
        there = {(run["task"], run["prompt"]) for cell in (was[1] if was else ()) for run in cell}
        again = [run for run in replayed if run["pair"] == pair and (run["task"], run["prompt"]) in there]
        if was and (said := compared(again, 0.0, RADAR, EAGLE3)):
            errors[f"{name}_{pair}"] = said[0].value / was[0].value - 1
    return errors | ({name: max(map(abs, errors.values()))} if errors else {})


def _texts(decoded: Kept) -> dict[str, Any]:
    """How many texts were decoded, one at a time or in company, and how many all methods wrote alike."""
    texts: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for run in decoded.alone:
        texts[run["pair"], run["task"], run["temperature"], run["prompt"]].add(run["text"])
    for run in decoded.together:
        for number, text in enumerate(run["texts"]):
            texts[run["pair"], run["rows"], number].add(text)
    alike = sum(len(found) == 1 for found in texts.values())
    return {"texts_compared": len(texts), "texts_identical": alike} if texts else {}


def rendered(results: Path = RESULTS) -> str:
    """What summary.json holds."""
    figures = summarise(read(results))
    figures |= {f"{LABORATORY}_{key}": one for key, one in summarise(read(results, (LABORATORY,))).items()}
    told = {key: round(one, 6) if isinstance(one, float) else one for key, one in figures.items()}
    return json.dumps(told, indent=1) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    (args.results / SUMMARY).write_text(rendered(args.results), encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
