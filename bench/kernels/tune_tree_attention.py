"""Times block sizes of tree attention, to choose those in `choose_blocks`. Needs a GPU.

python -m bench.kernels.tune_tree_attention [nodes prefix]...
"""

import importlib
import itertools
import sys

import torch

from bench.conftest import rotation
from bench.kernels.bench_tree_attention import DTYPE, make
from bench.shapes import LLAMA_8B
from radar_kernels import reference, tree_attention

op = importlib.import_module("radar_kernels.tree_attention")
CASES = ((64, 1024), (64, 4096), (64, 16384), (16, 4096), (16, 32768))


def candidates(rows: int):
    """(rows, keys, stages, warps, programs) worth a try for so many node-head pairs of a key-value head."""
    sizes = {64, 128} if rows > 64 else {min(rows, 64)}
    for size, keys, stages, programs in itertools.product(sorted(sizes), (32, 64, 128), (2, 3, 4), (128, 256)):
        warps = 8 if size == 128 else 4
        if stages * keys <= 256 and not (size == 128 and programs == 256 and keys == 32):
            yield op.Blocks(size, keys, stages, warps, programs)


def microseconds(inputs: list[tuple[torch.Tensor, ...]]) -> float:
    launches = -(-100 // len(inputs)) * len(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            tree_attention(*inputs[i % len(inputs)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    times = []
    for _ in range(7):
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) * 1e3 / launches)
    return sorted(times)[3]


def main(cases: tuple[tuple[int, int], ...]) -> None:
    device, chosen = torch.device("cuda"), op.choose_blocks
    print(torch.cuda.get_device_name())
    for nodes, prefix in cases:
        bytes_moved = 2 * LLAMA_8B.kv_heads * (prefix + nodes) * LLAMA_8B.head_dim * DTYPE.itemsize
        inputs = [make(LLAMA_8B, nodes, prefix, device) for _ in range(rotation(bytes_moved))]
        exact = reference.tree_attention(*(x.double() if x.is_floating_point() else x for x in inputs[0]))
        results = []
        for blocks in candidates(nodes * LLAMA_8B.heads // LLAMA_8B.kv_heads):
            op.choose_blocks = lambda blocks=blocks, **_: blocks
            try:
                error = ((tree_attention(*inputs[0]).double() - exact).norm() / exact.norm()).item()
                results.append((microseconds(inputs), error, blocks))
            except Exception as problem:  # too much shared memory
                print(f"   {tuple(blocks)}: {str(problem)[:80]}")
        op.choose_blocks = chosen
        print(f"{nodes} nodes, prefix {prefix}: {microseconds(inputs):.1f} us as chosen")
        for us, error, blocks in sorted(results)[:6]:
            print(
                f"   {us:7.1f} us  {bytes_moved / us / 1e6:5.2f} TB/s  error {error:.1e}  {tuple(blocks)}", flush=True
            )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(tuple(zip(numbers[::2], numbers[1::2], strict=True)) or CASES)
