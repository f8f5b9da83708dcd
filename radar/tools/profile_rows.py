"""Where the time of a round goes by how many rows share it, and by how many nodes they verify together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from radar.engine.ambient import ambient
from radar.engine.budget import calls_of, expanded_of
from radar.engine.captured import Streams
from radar.engine.round_rows import RoundRows
from radar.engine.steps import RoundSteps
from radar.errors import UsageError
from radar.target.pages import PagedKVCache
from radar.tools.batch_costs import BatchCosts
from radar.tools.profile import RoundProfile, cost_table, profile_steps

__all__ = ["NODES", "batch_costs", "nodes_to_time", "profile_rows"]

NODES = (16, 32, 64, 128, 192, 256)


def nodes_to_time(rows: int, total_tokens: int, asked: Iterable[int] = NODES) -> list[int]:
    """Of the numbers of nodes asked for, those that so many rows can verify together: two of each at least, and
    `total_tokens` of each at most, which is added. The same for every row, so rounded down to that."""
    most = rows * total_tokens
    return sorted({rows * (min(nodes, most) // rows) for nodes in asked if nodes >= 2 * rows} or {2 * rows})


def profile_rows(
    engine: RoundRows, *, rows: int, nodes: Sequence[int], prefixes: Sequence[int], repeats: int = 20
) -> Iterator[RoundProfile]:
    """Time rounds of the first rows of an engine, by nodes of all of them and by committed tokens of each.

    The first profile has `max_calls` draft calls, those after it two, which draft more candidates than are verified:
    what a call costs depends on neither. All have the time of a plain step. Ends the texts that the engine holds.

    Args:
        engine: of as many rows at least; its policy decides, and is not obeyed.
        rows: that hold a text.
        nodes: multiples of the rows, see `nodes_to_time`.
        prefixes: committed tokens of each row.
        repeats: measurements; medians count.

    Raises:
        ValueError: more rows than the engine has, a prefix that it cannot hold, or no repeats.
    """
    steps, device, config = engine.steps, engine.target.device, engine.config
    if not 1 <= rows < len(steps.active):
        raise UsageError(f"rows must be from 1 to {len(steps.active) - 1}, which this engine has, got {rows}")
    streams = Streams(device) if engine.name == "graph" else None
    calls = config.max_calls
    for count in nodes:
        view = _view(engine, rows, count)
        for prefix in prefixes:
            with ambient(device):
                view.policy = view.bind(engine.policy)
                _hold(engine, rows, prefix)
                try:
                    found = profile_steps(
                        view,
                        nodes=count,
                        prefix=prefix,
                        calls=calls,
                        repeats=repeats,
                        streams=streams,
                        plain=True,
                    )
                finally:
                    steps.active.zero_()
                    engine.forget()
            yield found
            calls = min(2, calls)


def _view(engine: RoundRows, rows: int, nodes: int) -> RoundSteps:
    """Steps as the engine makes them, of so many nodes."""
    config, expanded = engine.config, expanded_of(engine.config.tree_top_k, rows)
    if rows > 1 and engine.name == "graph":
        return engine.steps.first(rows, config.total_tokens, expanded, together=nodes, max_calls=calls_of(rows))
    return engine.steps.first(rows, nodes // rows, expanded)


def _hold(engine: RoundRows, rows: int, prefix: int) -> None:
    """Let the first rows hold texts of so many tokens, of which nothing is known but their place."""
    cache = engine.target.cache
    assert isinstance(cache, PagedKVCache)  # of two rows at least
    engine.forget()
    engine.steps.active[:rows] = True
    for row in range(rows):
        if not cache.reserve(row, prefix + 1 + engine.config.total_tokens):
            raise UsageError(
                f"{rows} rows of {prefix} tokens do not fit the cache: make fewer rows, or cache_tokens larger"
            )
    cache.publish()


def batch_costs(profiles: Mapping[int, Sequence[RoundProfile]], *, device: str, pair: str) -> BatchCosts:
    """What rounds cost by their profiles, by rows."""
    return BatchCosts(
        tables={rows: cost_table(found, device=device, pair=pair) for rows, found in profiles.items()},
        plain_seconds={rows: max(found[0].plain, 0.0) / 1000 for rows, found in profiles.items()},
    )
