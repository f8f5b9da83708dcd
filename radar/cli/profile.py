"""`radar profile`: the parts of a round on this device, as a table, a cost table for policies, a trace."""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from radar.cli.arguments import add_model_options, add_progress_option, positive
from radar.errors import UsageError

__all__ = ["add_arguments", "run"]

ROUNDS_IN_TRACE = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints the share of each part of a round, and writes the time table that policies are trained for and the "
        "trace of a few rounds for a viewer. On a GPU the times are the card's, measured in graphs. With several "
        "numbers of rows the table is one for each, of all rows together."
    )
    parser.add_argument(
        "--prefix", type=int, nargs="+", default=[1024], metavar="N", help="committed tokens (default 1024)"
    )
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        metavar="N",
        help="verified nodes, of all rows together (default: --total-tokens; with --batch 16 32 64 128 192 256 as far "
        "as they make sense)",
    )
    parser.add_argument("--calls", type=int, default=8, metavar="N", help="draft calls of one row's round (default 8)")
    parser.add_argument(
        "--batch", type=positive, nargs="+", default=[1], metavar="N", help="rows that share a round (default 1)"
    )
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="measurements of each part (default 20)")
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="write the cost table, for train-policy and evaluate: decisions are a network's, whatever --policy, as is "
        "the choice among several --nodes",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help=f"write a trace of {ROUNDS_IN_TRACE} rounds, for Perfetto"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, for a script")
    add_model_options(parser)
    add_progress_option(parser)


def run(args: argparse.Namespace) -> int:
    from radar.cli.decoders import make_decoder
    from radar.tools.machine import describe_machine, device_name
    from radar.tools.profile import cost_table, profile_round

    for option, path in (("--costs", args.costs), ("--trace", args.trace)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UsageError(f"{option} must name a file in a folder that is there, got {path}")
    if args.batch != [1]:
        return _rows(args)
    decoder = make_decoder(args, fallback=False)
    engine = decoder.engine
    machine = describe_machine(engine.target.device)
    prefixes = sorted(set(args.prefix))
    profiles, counts, one = [], sorted(set(args.nodes or [decoder.tree.total_tokens])), decoder
    for nodes in counts:
        one = decoder if nodes == decoder.tree.total_tokens else _with_nodes(decoder, nodes, args)
        profiles += [profile_round(one.engine, prefix=p, calls=args.calls, repeats=args.repeats) for p in prefixes]
    if args.costs:
        deep = _of_a_network(one, counts, prefixes[0], args.repeats)  # there is room for the most nodes
        device = device_name(engine.target.device)
        cost_table([deep, *profiles], device=device, pair=_pair(args, engine)).save(args.costs)
    if args.trace:
        _trace(decoder, args.trace, min(prefixes))
    if args.json:
        record = {"machine": machine, "engine": decoder.engine_name, "policy": repr(decoder.policy)}
        print(json.dumps(record | {"profiles": [profile.to_dict() for profile in profiles]}, indent=2))
        return 0
    print(f"{machine['hardware']}; {engine.target.dtype}; engine: {decoder.engine_name}; policy: {decoder.policy!r}")
    for profile in profiles:
        print(f"\nprefix of {profile.prefix} tokens, {args.calls} draft calls, {profile.nodes} nodes verified")
        for name, value in profile.parts().items():
            print(f"  {name:20}{value:9.3f} ms {value / profile.whole:7.1%}")
        print(f"  {'the whole round':20}{profile.whole:9.3f} ms")
    return 0


def _of_a_network(decoder: Any, nodes: Sequence[int], prefix: int, repeats: int) -> Any:
    """The profile of a deepest round in which a network decides, and chooses among these numbers of nodes where there
    is a choice: one that is trained by the table will, whatever the policy in hand."""
    from radar.tools.profile import network_to_time, profile_round

    nodes = [n for n in nodes if n <= decoder.tree.num_candidates + 1]
    policy, decoder.policy = decoder.policy, network_to_time(decoder.tree, nodes if len(nodes) > 1 else ())
    profile = profile_round(decoder.engine, prefix=prefix, calls=decoder.tree.max_calls, repeats=repeats)
    decoder.policy = policy
    return profile


def _pair(args: argparse.Namespace, engine: Any) -> str:
    """The models, in words."""
    head = str(engine.drafter.draft_dtype).removeprefix("torch.")
    return f"{args.target or 'embedded'} + {args.draft or 'embedded'} in {head}"


def _rows(args: argparse.Namespace) -> int:
    """Rounds that several rows share."""
    from tqdm import tqdm

    from radar.cli.decoders import make_decoder
    from radar.tools.machine import describe_machine, device_name
    from radar.tools.profile import RoundProfile
    from radar.tools.profile_rows import NODES, batch_costs, nodes_to_time, profile_rows
    from radar.tools.table import table

    if args.trace is not None:
        raise UsageError("--trace shows the rounds of one text: leave --batch out, or --trace")
    batches, prefixes = sorted(set(args.batch)), sorted(set(args.prefix))
    decoder = make_decoder(args, fallback=False, max_batch_size=max(2, *batches))
    engine, total = decoder.engine, decoder.tree.total_tokens
    nodes = {rows: nodes_to_time(rows, total, args.nodes or NODES) for rows in batches}
    profiles: dict[int, list[RoundProfile]] = {rows: [] for rows in batches}
    rounds = len(prefixes) * sum(map(len, nodes.values()))
    with tqdm(total=rounds, desc="rounds", disable=args.no_progress) as bar:
        for rows, counts in nodes.items():
            for one in profile_rows(engine, rows=rows, nodes=counts, prefixes=prefixes, repeats=args.repeats):
                profiles[rows].append(one)
                bar.update()
    if args.costs:
        costs = batch_costs(profiles, device=device_name(engine.target.device), pair=_pair(args, engine))
        costs.save(args.costs)
    machine = describe_machine(engine.target.device)
    if args.json:
        found = [{"rows": rows, **one.to_dict()} for rows, many in profiles.items() for one in many]
        record = {"machine": machine, "engine": decoder.engine_name, "policy": repr(decoder.policy)}
        print(json.dumps(record | {"profiles": found}, indent=2))
        return 0
    print(f"{machine['hardware']}; {engine.target.dtype}; engine: {decoder.engine_name}; policy: {decoder.policy!r}\n")
    head = ["rows", "first draft call [ms]", "draft call [ms]", "decision [ms]", "plain step [ms]"]
    deep = {rows: many[0] for rows, many in profiles.items()}
    values = {rows: (one.draft_calls[0], one.draft_step, one.decision, one.plain) for rows, one in deep.items()}
    print(table(head, [[rows, *(f"{value:.3f}" for value in found)] for rows, found in values.items()]))
    print()
    cells = [[rows, one.nodes, one.prefix, f"{one.verify:.3f}"] for rows, many in profiles.items() for one in many]
    print(table(["rows", "nodes of all", "prefix [tokens]", "verification [ms]"], cells))
    return 0


def _with_nodes(decoder: Any, nodes: int, args: argparse.Namespace) -> Any:
    """A decoder of the same models that verifies another number of nodes."""
    from dataclasses import replace

    from radar import RadarDecoder

    return RadarDecoder(
        decoder.model,
        draft=decoder.draft,
        policy=decoder.policy,
        tree=replace(decoder.tree, total_tokens=nodes),
        max_length=decoder.max_length,
        tap_layers=decoder.engine.target.tap_layers,
        engine=args.engine,
        fallback=False,
    )


def _rounds(decoder: Any, prompt: list[int]) -> Generator[Any]:
    """Rounds without end: end tokens are passed over, and where the cache is full the text is begun again."""
    while True:
        yield from decoder.rounds(prompt, eos_token_id=())


def _trace(decoder: Any, path: Path, prefix: int) -> None:
    import torch

    length = max(1, min(prefix, decoder.max_length - 8 * decoder.tree.max_accepted))
    rounds = _rounds(decoder, [token % decoder.vocab_size for token in range(length)])
    for _ in range(3):
        next(rounds)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(ROUNDS_IN_TRACE):
            next(rounds)
    rounds.close()
    profiler.export_chrome_trace(str(path))
