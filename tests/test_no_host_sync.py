"""The step functions never ask the host: nothing that reads a tensor's value, on a CPU too."""

import ast
from pathlib import Path

import pytest
import torch
from fakes import tiny_draft, tiny_target
from torch.utils._python_dispatch import TorchDispatchMode

from radar import FixedDepth, RadarDecoder, RadarPolicy, Threshold, TreeConfig
from radar.policy.by_mass import NodesByMass
from radar.policy.network import PolicyNetwork

ROOT = Path(__file__).parent.parent
STEP_FILES = [
    "radar/target/attention.py",
    "radar/target/fused_layer.py",
    "radar/draft/fused_head.py",
    "radar/draft/tree.py",
    "radar/target/cache.py",
    "radar/draft/drafter.py",
    "radar/draft/eagle3.py",
    "radar/engine/steps.py",
    "radar/engine/row_steps.py",
    "radar/engine/sized.py",
    "radar/policy/around.py",
    "radar/policy/base.py",
    "radar/policy/baselines.py",
    "radar/policy/baselines_heads.py",
    "radar/policy/baselines_history.py",
    "radar/policy/by_mass.py",
    "radar/policy/lstm.py",
    "radar_kernels/_pages.py",
    "radar_kernels/cache_rows.py",
    "radar_kernels/grow_tree.py",
    "radar_kernels/accept_nodes.py",
    "radar_kernels/select_nodes.py",
    "radar_kernels/sample_tokens.py",
    "radar_kernels/mark_seen.py",
    "radar_kernels/rms_norm.py",
    "radar_kernels/rotary_angles.py",
    "radar_kernels/rotate_store.py",
    "radar_kernels/silu_mul.py",
    "radar_kernels/reference_layer.py",
    "radar_kernels/reference_sampling.py",
    "radar_kernels/reference_tree.py",
    "radar_kernels/reference.py",
    "radar_kernels/tree_attention.py",
    "radar_kernels/draft_rows.py",
    "radar_kernels/mass_stop.py",
    "radar_kernels/lstm_step.py",
    "radar_kernels/tree_mass.py",
    "radar_kernels/choose_nodes.py",
]
READS = {"item", "tolist", "nonzero", "masked_select", "cpu", "numpy", "unique"}
# places that run once, at construction or outside of a round
ALLOWED = {"set_draft_vocabulary", "snapshot"}


class NoHostReads(TorchDispatchMode):
    """Raises where an operation hands a value, or a shape that depends on one, to the host."""

    BANNED = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if any(name.startswith(banned) for banned in self.BANNED) or boolean_index:
            raise AssertionError(f"{name} reads a value on the host")
        return func(*args, **(kwargs or {}))


def test_the_mode_catches_every_kind():
    x = torch.arange(4)
    for read in (lambda: x[2].item(), lambda: bool(x[1]), lambda: x.nonzero(), lambda: x[x > 1], lambda: int(x[0])):
        for mode in (False, True):  # where decoders run, other operations come
            with pytest.raises(AssertionError, match="on the host"), torch.inference_mode(mode), NoHostReads():
                read()


def policies():
    torch.manual_seed(0)
    return [FixedDepth(3), Threshold(0.2), RadarPolicy(PolicyNetwork()), RadarPolicy(PolicyNetwork(), sample=True)]


@pytest.mark.parametrize("policy", policies(), ids=["fixed", "threshold", "radar", "sampled"])
def test_a_round_reads_nothing_on_the_host(policy):
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=policy, tree=TreeConfig(total_tokens=20, max_calls=6), max_length=128
    )
    engine = decoder.engine
    with torch.inference_mode():
        next(decoder.rounds([1, 2, 3]))  # it is in the caches
        with NoHostReads():
            engine.steps.begin()
            for _ in range(4):
                engine.steps.stop()
                engine.steps.step()
            engine.steps.finish()


NODES = (4, 12, 30)
CHOOSERS = [NodesByMass(Threshold(0.2), NODES, [0.0, 0.1, 0.2]), RadarPolicy(PolicyNetwork(nodes=NODES))]


@pytest.mark.parametrize("policy", CHOOSERS, ids=["rule", "network"])
def test_a_choice_of_nodes_and_its_ways_read_nothing_on_the_host(policy):
    """A graph holds them all; who has none asks the host for the choice's number."""
    decoder = RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=policy, tree=TreeConfig(total_tokens=20, max_calls=6), max_length=128
    )
    steps = decoder.engine.steps
    with torch.inference_mode():
        next(decoder.rounds([1, 2, 3]))
        with NoHostReads():
            steps.begin()
            for _ in range(4):
                steps.stop()
                steps.step()
            steps.stop()
            assert steps.sized.choice().shape == (1,)
            steps.finish_each()
            steps.sized.keep()
            for way in steps.sized.ways:
                steps.sized.end_into(way)
        with NoHostReads(), pytest.raises(AssertionError, match="on the host"):
            steps.finish()


def test_one_read_of_the_result_per_round():
    """The host-driven runner reads one flag per decision and one report per round, nowhere else."""
    source = ast.parse((ROOT / "radar/engine/eager.py").read_text())
    run = next(node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "round")
    calls = [ast.unparse(node.func) for node in ast.walk(run) if isinstance(node, ast.Call)]
    assert [name for name in calls if name.endswith((".tolist", ".item", ".cpu", ".nonzero"))] == [
        "steps.commit()[0].tolist"
    ]
    assert calls.count("bool") == 1


@pytest.mark.parametrize("file", STEP_FILES)
def test_step_files_name_no_reads(file):
    found = []

    def visit(node, inside):
        if isinstance(node, ast.FunctionDef):
            inside = inside or node.name in ALLOWED
        if isinstance(node, ast.Attribute) and node.attr in READS and not inside:
            found.append(f"{file}:{node.lineno} .{node.attr}")
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse((ROOT / file).read_text()), False)
    assert found == []
