"""Every kernel once at odd shapes, checked against its reference: what the CUDA memory checker is run on.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m bench.memcheck

Without the caching allocator every tensor is an allocation of its own, so an access past its end is seen.
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


def same(name: str, ours: Tensor, theirs: Tensor) -> None:
    print(f"{name}: {'equal' if torch.equal(ours, theirs) else 'DIFFERENT'}", flush=True)
    if not torch.equal(ours, theirs):
        raise AssertionError(name)


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


def sampling() -> None:
    vocabulary = 4099
    one = torch.ones(1, device=DEVICE)
    for temperature, top_k, top_p in ((0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 40, 1.0), (0.7, 0, 0.9)):
        state = rk.SamplingState(
            seed=one.long(), temperature=one * temperature, top_k=(one * top_k).int(), top_p=one * top_p,
            min_p=one * 0, repetition_penalty=one, biased=one == 0,
            logit_bias=torch.zeros(1, vocabulary, device=DEVICE),
            seen=torch.zeros(1, -(-vocabulary // 32), dtype=torch.int32, device=DEVICE),
        )  # fmt: skip
        logits = torch.randn(1, 61, vocabulary, device=DEVICE) * 3
        positions = torch.arange(61, device=DEVICE)[None]
        ours, theirs = (f(logits, positions, state) for f in (rk.sample_tokens, reference_sampling.sample_tokens))
        same(f"sample_tokens T={temperature} k={top_k} p={top_p}", ours, theirs)
        rk.mark_seen(state.seen, ours, torch.tensor([61], device=DEVICE))


def main() -> int:
    torch.manual_seed(0)
    for check in (attention, levels, policy, cache_rows, trees, sampling):
        check()
    torch.cuda.synchronize()
    print("every kernel ran and agreed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
