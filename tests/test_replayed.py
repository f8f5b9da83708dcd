"""Every method on recorded rounds, by prompt: sums are those of `radar.replay`, and the command writes them all."""

import json
from dataclasses import replace

import pytest
import torch
from rounds_files import store

from bench import replayed
from bench.runs import key_of, read_runs
from bench.tables import BOUNDS, TASKS
from radar import FixedDepth, Threshold, TreeConfig
from radar.policy.by_mass import NodesByMass
from radar.replay.replay import replay
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable

NODES, CALLS, K, EACH = (16, 60), 4, 3, 5
COSTS = CostTable(
    draft_call_seconds=(0.3, 0.2, 0.2, 0.2), nodes=NODES, contexts=(0, 40), verify_seconds=((1.0, 1.5), (1.2, 2.0)),
    decision_seconds=0.01, rest_seconds=0.1, device="any", pair="any", choice_seconds=0.02,
)  # fmt: skip
POLICIES = {
    "eagle3": FixedDepth(4),
    "threshold": Threshold(0.9),
    "threshold_nodes": NodesByMass(Threshold(0.9), NODES, [0.0, 0.4]),
}


@pytest.fixture(autouse=True)
def two_prompts_a_task(monkeypatch):
    monkeypatch.setattr(replayed, "PER_TASK", 2)


def rounds(temperature, prompts=8, *, every_token=False):
    """Five rounds a prompt; sixteen nodes have a level less accepted than sixty."""
    generator = torch.Generator().manual_seed(int(temperature))
    count = EACH * prompts
    scores = (-torch.rand(count, CALLS, K, generator=generator) * 0.4).cumsum(1).sort(dim=2, descending=True).values
    depth = torch.randint(0, CALLS + 1, (count, 1), generator=generator)
    lengths = depth.clamp(max=torch.arange(1, CALLS + 1))
    table = torch.stack([(lengths - 1).clamp(min=0), lengths], -1)
    parts = {"mass_by_nodes": torch.rand(count, CALLS, 2, generator=generator).sort(-1).values}
    if temperature:
        parts["expected_by_nodes"] = table * 0.9
    header = RoundsHeader(
        TreeConfig(tree_top_k=K, max_calls=CALLS, total_tokens=60), temperature, every_token=every_token, nodes=NODES
    )
    prompt, position = torch.arange(count) // EACH, torch.arange(count) % EACH * (1 if every_token else 20)
    return RoundDataset(scores, lengths, prompt, position, header, accepted_by_nodes=table.to(torch.uint8), **parts)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", POLICIES)
def test_sums_by_prompt_are_what_replay_says(name, temperature, every_token):
    data = rounds(temperature, every_token=every_token)
    runs, wanted = list(replayed.replayed(POLICIES[name], data, COSTS)), replay(POLICIES[name], data, COSTS)
    assert [(run["task"], run["prompt"]) for run in runs] == [(task, n) for task in TASKS for n in range(2)]
    total = {key: sum(run[key] for run in runs) for key in ("tokens", "seconds", "rounds", "calls", "drafted")}
    assert total["rounds"] == wanted.rounds
    assert (wanted.rounds < len(data)) is every_token  # some are stepped over
    assert total["tokens"] / total["seconds"] == pytest.approx(wanted.tokens_per_time, rel=1e-6)
    assert total["tokens"] / total["rounds"] == pytest.approx(wanted.mean_acceptance_length, rel=1e-6)
    assert total["calls"] / total["rounds"] == pytest.approx(wanted.draft_calls)
    assert total["drafted"] / total["rounds"] + 1 == pytest.approx(wanted.nodes)
    for place, run in enumerate(runs):  # and each prompt is that of its own rounds
        alone = replay(POLICIES[name], data.select(data.prompt == place), COSTS)
        assert run["tokens"] / run["seconds"] == pytest.approx(alone.tokens_per_time, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nobody_is_above_the_bounds(temperature):
    data = rounds(temperature)
    speeds = {}
    for run in replayed.oracles(data, COSTS):
        tokens, seconds = speeds.get(run["method"], (0.0, 0.0))
        speeds[run["method"]] = tokens + run["tokens"], seconds + run["seconds"]
    speeds = {method: tokens / seconds for method, (tokens, seconds) in speeds.items()}
    assert speeds.keys() == set(BOUNDS) - (set() if temperature else {"knowing"})
    best = max(replay(policy, data, COSTS.without_decisions()).tokens_per_time for policy in POLICIES.values())
    assert speeds["knowing" if temperature else "hindsight"] > best
    for task, number in zip(TASKS, range(4), strict=True):
        own = data.select(data.prompt // 2 == number)
        runs = [run for run in replayed.oracles(data, COSTS) if run["task"] == task]
        fixed = [run for run in runs if run["method"] == "best_fixed_hindsight"]
        reached = sum(run["tokens"] for run in fixed) / sum(run["seconds"] for run in fixed)
        depths = [replay(FixedDepth(n), own, COSTS).tokens_per_time for n in range(1, CALLS + 1)]
        assert reached >= max(depths) * (1 - 1e-6)


def test_the_command_writes_every_method_once(tmp_path):
    store(tmp_path / "rounds", rounds(0.0), range(8))
    store(tmp_path / "train", rounds(0.0, 12), range(12))
    COSTS.save(tmp_path / "costs.json")
    chosen = {
        "eagle3": {"calls": 4},
        "threshold": {"mass": 0.9},
        "threshold_nodes": {"mass": 0.9, "nodes": list(NODES), "prices": [0.0, 0.4]},
    }
    told = {name: one | {"beams": K} for name, one in chosen.items()} | {"threshold_16": {"mass": 0.5, "beams": 16}}
    (tmp_path / "methods.json").write_text(json.dumps({"llama": {"0": told}}))
    words = [f"--{name}={tmp_path / name}" for name in ("rounds", "train")]
    words += [f"--{name}={tmp_path / name}.json" for name in ("costs", "methods")]
    assert replayed.main([*words, "--pair", "llama", "--epochs", "1", "--out", str(tmp_path / "runs.jsonl")]) == 0
    runs = read_runs(tmp_path / "runs.jsonl")
    methods = {run["method"] for run in runs}
    assert methods == {*chosen, *replayed.SOURCES.values(), "hindsight", "best_fixed_hindsight"}  # of three beams
    assert len(runs) == len({key_of(run) for run in runs}) == 8 * len(methods)
    wanted = {(run["task"], run["prompt"]): run for run in replayed.replayed(POLICIES["threshold"], rounds(0.0), COSTS)}
    for run in runs:
        if run["method"] == "threshold":
            assert run["tokens"] == wanted[run["task"], run["prompt"]]["tokens"]


def test_a_pairs_own_rounds_are_replayed_as_far_as_it_decoded(tmp_path):
    """Of one prompt a task, whose rounds begin behind 50 tokens, to the third token: two rounds at most."""
    data = rounds(0.0, 4, every_token=True)
    store(tmp_path / "rounds", replace(data, position=data.position + 50), range(4))
    COSTS.save(tmp_path / "costs.json")
    told = {"eagle3": {"calls": 4, "beams": K}, "threshold": {"mass": 0.9, "beams": K}}
    (tmp_path / "methods.json").write_text(json.dumps({"llama": {"0": told}}))
    words = [f"--rounds={tmp_path / 'rounds'}", *(f"--{name}={tmp_path / name}.json" for name in ("costs", "methods"))]
    words += ["--own", "1", "3", "--pair", "llama", "--out", str(tmp_path / "runs.jsonl")]
    assert replayed.main(words) == 0
    runs = read_runs(tmp_path / "runs.jsonl")
    assert {(run["pair"], run["prompt"]) for run in runs} == {("llama_own", 0)}
    assert [(run["method"], run["task"]) for run in runs] == [(name, task) for name in told for task in TASKS]
    for number, run in enumerate(runs[:4]):  # EAGLE-3's
        accepted = data.accept_lengths[data.prompt == number, 3].tolist()
        made = [accepted[0], *accepted[1:2]] if accepted[0] == 0 else accepted[:1]
        assert (run["rounds"], run["calls"], run["tokens"]) == (len(made), 4 * len(made), 2)
    assert {run["rounds"] for run in runs[:4]} == {1, 2}
