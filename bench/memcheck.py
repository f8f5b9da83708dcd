"""Every kernel once at odd shapes, checked against its reference: what the CUDA memory checker is run on.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m bench.memcheck

Without the caching allocator every tensor is an allocation of its own, so an access past its end is seen. On a card
that is not Hopper, `skinny_linear` is cuBLAS's.
"""

import sys

import torch
from torch import Tensor

import radar_kernels as rk
from radar_kernels import reference, reference_sampling, reference_tree

DEVICE = torch.device("cuda")


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-6)
    print(f"{name}: relative error {float(error):.1e}", flush=True)
    if not error <= tolerance:
        raise AssertionError(f"{name}: {float(error)} is more than {tolerance}")


def same(name: str, ours: Tensor, theirs: Tensor, *, but: int = 0) -> None:
    """Equal `but` for so many elements."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"{name}: {tuple(ours.shape)} is not {tuple(theirs.shape)}")
    different = int((ours != theirs).sum())
    print(f"{name}: {f'{different} DIFFERENT' if different else 'equal'}", flush=True)
    if different > but:
        raise AssertionError(f"{name}: {different} elements differ, at most {but} may")


def attention() -> None:
    for nodes, prefix, dim in ((1, 0, 64), (7, 127, 128), (61, 4097, 128), (70, 33, 96)):
        words = -(-nodes // 64)
        query = torch.randn(1, 8, nodes, dim, device=DEVICE, dtype=torch.bfloat16)
        key, value = (torch.randn(1, 2, prefix + nodes, dim, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        chain = reference_tree.pack_bits(torch.ones(nodes, nodes, dtype=torch.bool, device=DEVICE).tril())
        inputs = (query, key, value, torch.tensor([prefix], device=DEVICE), chain.view(1, nodes, words))
        exact = reference.tree_attention(*(x.double() if x.is_floating_point() else x for x in inputs))
        close(f"tree_attention {nodes} {prefix} {dim}", rk.tree_attention(*inputs), exact, 2e-2)


def levels() -> None:
    for rows, vocabulary, k in ((1, 17, 5), (10, 32001, 10)):
        logits = torch.randn(1, rows, vocabulary, device=DEVICE)
        parents = torch.randn(1, rows, device=DEVICE)
        ours = rk.topk_confidence(logits, parents, k)
        theirs = reference.topk_confidence(logits, parents, k)
        close(f"topk_confidence {rows} x {vocabulary}", ours.scores, theirs.scores, 1e-5)
        same("its tokens", ours.candidate_tokens, theirs.candidate_tokens)


def policy() -> None:
    for hidden in (64, 129):
        sizes = [
            (4 * hidden, 10),
            (4 * hidden, hidden),
            (4 * hidden,),
            (4 * hidden,),
            (33, hidden + 10),
            (33,),
            (2, 33),
        ]
        weights = rk.PolicyWeights(*(torch.randn(size, device=DEVICE) * 0.1 for size in (*sizes, (2,))))
        scores, state, cell = (torch.randn(1, n, device=DEVICE) for n in (10, hidden, hidden))
        theirs = reference.lstm_step(scores, state, cell, weights, floor=-100.0)
        close(
            f"lstm_step {hidden}", rk.lstm_step(scores, state, cell, weights, floor=-100.0).logits, theirs.logits, 1e-4
        )
        rk.lstm_step(scores, state, cell, weights, floor=-100.0, update=True)
        close("its state in place", state, theirs.hidden, 1e-4)


def cache_rows() -> None:
    cache = torch.zeros(2, 3, 1, 2, 75, 64, device=DEVICE, dtype=torch.bfloat16)  # keys and values of three layers
    new = torch.randn(1, 60, 2, 64, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    start = torch.tensor([15], device=DEVICE)
    rk.store_rows(cache[0, 1], cache[1, 1], new, -new, start)
    same("store_rows", cache[0, 1, :, :, 15:], new)
    path = torch.tensor([[0, 3, 17, 59, 0]], device=DEVICE)
    wanted = new[:, :, path[0, :4]]
    rk.keep_rows(cache[0], cache[1], start, path, torch.tensor([4], device=DEVICE))
    same("keep_rows", cache[0, 1, :, :, 15:19], wanted)


def growth() -> None:
    k, calls, hidden = 10, 8, 1100  # two words of ancestors, two blocks of the hidden state
    sizes = [(k + (calls - 1) * k * k,)] * 3 + [(k,)] * 3 + [(k, 2), (), (k, hidden)]
    floats = (0, 3, 8)
    ours, theirs = (
        rk.TreeBuffers(
            *(
                torch.zeros(2, *size, device=DEVICE, dtype=torch.float32 if i in floats else torch.int64)
                for i, size in enumerate(sizes)
            )
        )
        for _ in range(2)
    )
    for call in range(calls):
        rows = k if call else 1
        logits = torch.randn(2, rows, 999, device=DEVICE)
        level = reference.topk_confidence(logits, torch.zeros(2, rows, device=DEVICE), k)
        states = torch.randn(2, rows, hidden, device=DEVICE)
        rk.grow_tree(level, states, ours, first=call == 0)
        reference_tree.grow_tree(level, states, theirs, first=call == 0)
        for name in ours._fields:
            same(f"grow_tree {call} {name}", getattr(ours, name), getattr(theirs, name))


def trees() -> None:
    k, calls, total = 10, 4, 60
    slots = k + (calls - 1) * k * k
    scores = torch.randn(1, slots, device=DEVICE).abs().neg()
    tokens = torch.randint(0, 999, (1, slots), device=DEVICE)
    parents = torch.full((1, slots), -1, device=DEVICE)
    for depth in range(1, calls):
        first = k + (depth - 1) * k * k
        before = 0 if depth == 1 else first - k * k
        parents[0, first : first + k * k] = before + torch.arange(k * k, device=DEVICE) // k
        scores[0, first : first + k * k] += scores[0, parents[0, first : first + k * k]]
    root = torch.tensor([5], device=DEVICE)
    ours = rk.select_nodes(scores, tokens, parents, root, total_tokens=total, tree_top_k=k)
    theirs = reference_tree.select_nodes(scores, tokens, parents, root, total_tokens=total, tree_top_k=k)
    for name in ours._fields:
        same(f"select_nodes {name}", getattr(ours, name), getattr(theirs, name))
    target = torch.randint(0, 999, (1, total), device=DEVICE)
    target[0, 0] = ours.draft_tokens[0, 1]
    fields = (ours.draft_tokens, ours.parents, ours.valid, target)
    accepted, wanted = (f(*fields, max_accepted=9) for f in (rk.accept_nodes, reference_tree.accept_nodes))
    for name in accepted._fields:
        same(f"accept_nodes {name}", getattr(accepted, name), getattr(wanted, name))


def linears() -> None:
    """Fewer outputs than a block, blocks that end outside, the wide blocks, and the many rows of an output layer."""
    depths = (208, 4112)  # no multiple of a step: its columns are masked
    cases = [(rows, n, k) for rows in (1, 7, 16) for n, k in zip((33, 4099), depths, strict=True)]
    cases += [(7, 24583, 256), (16, 28679, 208), (61, 65543, 208), (33, 70001, 256)]
    for rows, n, k in cases:
        for dtype in (torch.bfloat16, torch.float16):
            # the last columns of a wider x: its last row ends where the allocation does
            x = torch.randn(1, rows, k + 16, device=DEVICE, dtype=dtype)[..., 16:]
            weight, bias = (torch.randn(size, device=DEVICE, dtype=dtype) for size in ((n, k), (n,)))
            exact = x.double() @ weight.double().T
            name = f"skinny_linear {rows} x {n} x {k} {dtype}"
            close(name, rk.skinny_linear(x, weight), exact, 1e-2)
            close(f"{name} bias", rk.skinny_linear(x, weight, bias), exact + bias.double(), 1e-2)


def sampling() -> None:
    """The paths of the three kernels: the list holds what may be kept or not, k within the segments or not."""
    settings: dict[str, dict[str, float]] = {
        "greedy": {"temperature": 0.0},
        "temperature": {},
        "top-k": {"temperature": 0.8, "top_k": 20},
        "top-k over the segments": {"temperature": 0.8, "top_k": 40},
        "top-p": {"temperature": 0.7, "top_p": 0.9},
        "top-p of the flat": {"temperature": 9.0, "top_p": 0.999},
        "min-p": {"min_p": 0.05},
        "min-p of the flat": {"temperature": 9.0, "min_p": 1e-4},
        "top-k and top-p": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        "top-k over the segments and top-p": {"temperature": 0.8, "top_k": 700, "top_p": 0.9},
        "all": {"temperature": 1.2, "top_k": 30, "top_p": 0.8, "min_p": 0.02},
    }
    shapes = ((61, 4099, torch.bfloat16), (70, 4099, torch.float32), (1, 17, torch.float32))
    for nodes, vocabulary, dtype in shapes:
        for name, setting in settings.items():
            for tree in (False, True):  # with one: history, penalty and bias as well
                sample(f"{nodes} x {vocabulary} {name}{' tree' * tree}", nodes, vocabulary, dtype, setting, tree=tree)


def sample(
    name: str, nodes: int, vocabulary: int, dtype: torch.dtype, setting: dict[str, float], *, tree: bool
) -> None:
    """Two sequences, the second one greedy: rows with and without filters in one launch."""
    both = torch.ones(2, device=DEVICE)

    def value(key: str, off: float) -> Tensor:
        return torch.tensor([setting.get(key, off), 0.0 if key == "temperature" else off], device=DEVICE)

    bias = torch.randn(2, vocabulary, device=DEVICE)
    bias[:, 1::7] = -torch.inf
    words = -(-vocabulary // 32)
    state = rk.SamplingState(
        seed=both.long(), temperature=value("temperature", 1.0), top_k=value("top_k", 0).int(),
        top_p=value("top_p", 1.0), min_p=value("min_p", 0.0), repetition_penalty=both * (1.3 if tree else 1.0),
        biased=both == tree, logit_bias=bias,
        seen=torch.randint(-(2**31), 2**31, (2, words), device=DEVICE).int(),
    )  # fmt: skip
    logits = (torch.randn(2, nodes, vocabulary, device=DEVICE) * 3).to(dtype)
    positions = torch.arange(2 * nodes, device=DEVICE).view(2, nodes)
    path: dict[str, Tensor] = {}
    if tree:  # a chain: the last node sees all
        seen = reference_tree.pack_bits(torch.ones(nodes, nodes, dtype=torch.bool, device=DEVICE).tril())
        tokens = torch.randint(vocabulary, (2, nodes), device=DEVICE)
        path = {"draft_tokens": tokens, "ancestors": seen.view(1, nodes, -1).repeat(2, 1, 1)}
    ours, theirs = (f(logits, positions, state, **path) for f in (rk.sample_tokens, reference_sampling.sample_tokens))
    # two tokens within rounding of each other may change places
    same(f"sample_tokens {name}", ours, theirs, but=nodes // 60)
    marked, count = state.seen.clone(), torch.tensor([nodes, nodes // 2], device=DEVICE)
    rk.mark_seen(state.seen, ours, count)
    reference_sampling.mark_seen(marked, ours, count)
    same("mark_seen", state.seen, marked)


def main() -> int:
    torch.manual_seed(0)
    for check in (attention, levels, policy, cache_rows, growth, trees, linears, sampling):
        check()
    torch.cuda.synchronize()
    print("every kernel ran and agreed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
