"""Compiles what chooses how many nodes are verified for real GPUs without one, and the conditions of graphs; see
test_compile.py, whose tools this uses."""

import sys

import pytest
import torch
from launches import Launches, print_compiled
from test_compile import ARCHITECTURES, assert_fits, compile_elsewhere

HEADS = [(128, 10, 5, 128), (100, 16, 1, 40), (64, 4, 8, 64)]  # state, scores of a beam, numbers of nodes, middle
SLOTS = [1510, 3856, 16]  # candidates of a tree


def record_launches(arch):
    """Those that the cases above make on `arch`."""
    import radar_kernels
    from radar_kernels import graph_condition

    launches = Launches(arch, "tree_mass", "choose_nodes", "graph_condition")
    for hidden, inputs, choices, middle in HEADS:
        launches.label = f"choose_nodes {hidden} {inputs} {choices} {middle}"
        shapes = [(middle, hidden + inputs + choices), (middle,), (choices, middle), (choices,)]
        weights = radar_kernels.NodeWeights(*map(torch.empty, shapes))
        state = torch.empty(1, hidden), torch.empty(1, inputs), torch.empty(1, choices)
        radar_kernels.choose_nodes(*state, weights, floor=-100.0, backend="triton")
    for slots in SLOTS:
        launches.label = f"tree_mass {slots}"
        radar_kernels.tree_mass(torch.empty(1, slots), torch.zeros(5, dtype=torch.int32), backend="triton")
    one = torch.zeros(1, dtype=torch.int64)
    for rows in (1, 8):
        launches.label = f"a loop of {rows}"
        graph_condition.set_graph_condition(one.new_zeros(rows).bool(), one.new_zeros(rows), one, max_calls=16)
    launches.label = "one of several ways"
    graph_condition.set_graph_choice(one, one)
    return launches


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_choice_of_nodes_fits(arch, tmp_path):
    results = compile_elsewhere(__file__, tmp_path, arch)
    # loads before the wait for the launch in front: of weights, of one number that is older than the graph
    early = {"choose_kernel": 1000, "tree_mass_kernel": 1, "condition_kernel": 1, "choice_kernel": 1}
    assert {result["kernel"] for result in results} == early.keys()
    for result in results:
        assert_fits(result, arch)
        assert result["pdl"] == (arch >= 90)
        assert result["early loads"] <= early[result["kernel"]], f"a load before the wait: {result}"
        assert not result["fp32 through tf32"], "a float32 product would be rounded to 10 bits"


if __name__ == "__main__":
    arch = int(sys.argv[1])
    print_compiled(record_launches(arch), arch, lambda ptx: {"fp32 through tf32": "tf32" in ptx})
