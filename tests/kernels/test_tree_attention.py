"""tree_attention: the reference against the formula with a dense mask, the kernel against the reference."""

import importlib

import pytest
import torch
from tolerances import TOLERANCES, assert_close, relative_error

from radar_kernels import reference, tree_attention

NAN = float("nan")


def random_tree(nodes: int, *, columns: int | None = None, seed: int = 0) -> torch.Tensor:
    """bool [nodes, columns]: a random tree over `columns` rows, whose last `nodes` rows are the queries."""
    columns = columns or nodes
    generator = torch.Generator().manual_seed(seed)
    dense = torch.eye(columns, dtype=torch.bool)
    for child in range(1, columns):
        parent = int(torch.randint(max(0, child - 7), child, (1,), generator=generator))
        dense[child] |= dense[parent]
    return dense[-nodes:]


def pack(dense: torch.Tensor) -> torch.Tensor:
    """bool [..., columns] -> int64 words [..., ceil(columns / 64)]."""
    columns = dense.shape[-1]
    dense = torch.nn.functional.pad(dense, (0, -columns % 64)).unflatten(-1, (-1, 64)).long()
    return (dense << torch.arange(64, device=dense.device)).sum(-1)  # wraps into the sign bit


class Case:
    """Inputs whose cache is NaN wherever nobody looks, and what the formula makes of them in float64."""

    def __init__(
        self,
        *,
        heads=4,
        kv_heads=2,
        nodes=8,
        dim=16,
        prefix=(40,),
        columns=None,
        spare=70,
        dtype=torch.float32,
        device="cpu",
    ):
        batch, columns = len(prefix), columns or nodes
        capacity = max(prefix) + columns + spare
        dense = torch.stack([random_tree(nodes, columns=columns, seed=b) for b in range(batch)])
        self.prefix_length = torch.tensor(prefix, device=device)
        self.ancestors = pack(dense).to(device)
        self.query = (
            torch.randn(batch, nodes, heads, dim).to(device, dtype).transpose(1, 2)
        )  # a view, as models have it
        self.key, self.value = (torch.randn(batch, kv_heads, capacity, dim).to(device, dtype) for _ in range(2))
        visible = torch.zeros(batch, nodes, capacity, dtype=torch.bool, device=device)
        for b, length in enumerate(prefix):
            visible[b, :, :length] = True
            visible[b, :, length : length + columns] = dense[b].to(device)
            self.key[b, :, ~visible[b].any(0)] = NAN
            self.value[b, :, ~visible[b].any(0)] = NAN
        self.visible = visible

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self.query, self.key, self.value, self.prefix_length, self.ancestors

    def expected(self) -> torch.Tensor:
        group = self.query.shape[1] // self.key.shape[1]
        key, value = (x.double().nan_to_num(0).repeat_interleave(group, 1) for x in (self.key, self.value))
        scores = torch.einsum("bhnd,bhsd->bhns", self.query.double(), key) * self.query.shape[3] ** -0.5
        weights = scores.masked_fill(~self.visible[:, None], -torch.inf).softmax(-1)
        return torch.einsum("bhns,bhsd->bnhd", weights, value)


SHAPES = {
    "prefix 0": {"prefix": (0,)},
    "prefix 1": {"prefix": (1,)},
    "prefix 127": {"prefix": (127,), "dim": 64},
    "prefix of whole blocks": {"prefix": (128,), "nodes": 3},
    "one node": {"nodes": 1, "heads": 2, "dim": 128},
    "one node alone": {"nodes": 1, "prefix": (0,), "spare": 0},
    "60 nodes": {"nodes": 60, "heads": 4, "kv_heads": 1, "prefix": (33,)},
    "64 nodes, bit 63": {"nodes": 64, "heads": 2, "prefix": (5,)},
    "70 nodes, two words": {"nodes": 70, "heads": 2, "prefix": (20,)},
    "10 queries of 80 rows": {"nodes": 10, "columns": 80, "prefix": (50,)},
    "batch 2": {"prefix": (3, 90), "nodes": 12},
    "group 1": {"heads": 2, "kv_heads": 2},
    "group 7": {"heads": 7, "kv_heads": 1, "nodes": 5},
    "dim 96": {"dim": 96, "nodes": 6},
    "dim 32, full cache": {"dim": 32, "spare": 0},
    "many splits": {"prefix": (700,), "heads": 2, "kv_heads": 1, "nodes": 4},
    "many splits, few used": {"prefix": (30,), "spare": 700, "heads": 2, "kv_heads": 1, "nodes": 4},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_reference_equals_dense_mask(shape, device):
    case = Case(**shape, device=device)
    assert_close(reference.tree_attention(*case.inputs), case.expected(), "tree_attention reference", torch.float32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, kernel_dtype, device):
    case = Case(**shape, dtype=kernel_dtype, device=device)
    out = tree_attention(*case.inputs, backend="triton")
    assert out.dtype == kernel_dtype
    assert out.is_contiguous()
    exact = [x.double() if x.is_floating_point() else x for x in case.inputs]
    assert_close(out, reference.tree_attention(*exact), "tree_attention", kernel_dtype)


TILES = [
    (16, 64, 1),
    (16, 64, 3),
    (32, 64, 3),
    (64, 64, 3),
    (64, 64, 4),
    (128, 64, 3),
    (32, 32, 3),
    (64, 32, 3),
    (16, 128, 2),
]


@pytest.mark.parametrize("dim", [64])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_size_is_right(tile, dim, device, monkeypatch):
    """Forced block sizes, those that `choose_blocks` avoids included: some were miscompiled once (bench/NOTES.md)."""
    if device.type == "cpu" and (dim > 16 or tile[0] > 64):
        pytest.skip("slow in the interpreter, which has no tiles to get wrong")
    rows, keys, stages = tile
    module = importlib.import_module("radar_kernels.tree_attention")
    blocks = module.Blocks(rows, keys, stages, 8 if rows == 128 else 4, 256)
    monkeypatch.setattr(module, "choose_blocks", lambda **_: blocks)
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    for shape in ("batch 2", "10 queries of 80 rows", "60 nodes", "many splits"):
        case = Case(**SHAPES[shape] | {"dim": dim}, dtype=dtype, device=device)
        exact = [x.double() if x.is_floating_point() else x for x in case.inputs]
        out = tree_attention(*case.inputs, backend="triton")
        assert_close(out, reference.tree_attention(*exact), "tree_attention", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("change", ["hide one", "show one", "shift by one", "longer prefix"])
def test_a_wrong_mask_is_caught(change, backend, device):
    """The comparisons above can fail: one wrong bit, or a prefix off by one, is far outside the tolerance."""
    case = Case(nodes=60, prefix=(64,), device=device)
    case.key, case.value = case.key.nan_to_num(0), case.value.nan_to_num(0)
    expected = case.expected()
    if change == "hide one":
        case.ancestors[0, 30, 0] ^= 1 << 30
    elif change == "show one":
        case.ancestors[0, 10, 0] ^= 1 << 59
    elif change == "shift by one":
        case.ancestors <<= 1
    else:
        case.prefix_length += 1
    error = relative_error(tree_attention(*case.inputs, backend=backend), expected)
    assert error > 100 * TOLERANCES["tree_attention", torch.float32]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_every_bit_shows_its_own_key(backend, device):
    """Node n sees key prefix + n only, so it returns value row prefix + n; the last bits of both words are signs."""
    case = Case(nodes=128, heads=1, kv_heads=1, prefix=(9,), device=device)
    case.key, case.value = case.key.nan_to_num(0), case.value.nan_to_num(0)
    case.prefix_length.zero_()
    out = tree_attention(*case.inputs[:4], pack(torch.eye(128, dtype=torch.bool)).to(device)[None], backend=backend)
    torch.testing.assert_close(out[0, :, 0], case.value[0, 0, :128])


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_node_that_sees_nothing_returns_zero(backend, device):
    case = Case(nodes=3, prefix=(0,), device=device)
    case.ancestors[0, 1] = 0
    case.key[:, :, 1], case.value[:, :, 1] = NAN, NAN
    out = tree_attention(*case.inputs[:4], case.ancestors & ~2, backend=backend)
    assert out[0, 1].abs().max() == 0
    assert out.isfinite().all()
    assert out[0, 0].abs().max() > 0


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_bits_beyond_the_cache_are_ignored(backend, device):
    case = Case(nodes=4, prefix=(20,), spare=0, device=device)
    expected = tree_attention(*case.inputs, backend=backend)
    out = tree_attention(*case.inputs[:4], case.ancestors | (-1 << 4), backend=backend)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_strides_scale_and_expanded_ancestors(backend, device):
    """Caches that are views (of [B, S, KV, D]), one tree for the whole batch and another scale change nothing."""
    case = Case(nodes=6, prefix=(11, 60), device=device)
    one = case.ancestors[:1]
    key, value = (x.nan_to_num(0).transpose(1, 2).contiguous().transpose(1, 2) for x in (case.key, case.value))
    out = tree_attention(case.query, key, value, case.prefix_length, one.expand(2, -1, -1), scale=0.3, backend=backend)
    copies = [x.double().contiguous() for x in (case.query, key, value)]
    expected = reference.tree_attention(*copies, case.prefix_length, one.repeat(2, 1, 1), scale=0.3)
    assert_close(out, expected, "tree_attention", torch.float32)
    assert relative_error(tree_attention(*case.inputs[:4], one.expand(2, -1, -1), backend=backend), expected) > 0.1


def test_cpu_runs_the_reference(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "tree_attention", lambda *args, **options: called.append(options) or "reference")
    assert tree_attention(*Case().inputs) == "reference"
    assert called == [{"scale": 0.25}]


def test_compiles_without_a_graph_break(device):
    case = Case(device=device)
    backend = "triton" if device.type == "cuda" else "torch"
    compiled = torch.compile(lambda *x: tree_attention(*x, backend=backend) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case.inputs), tree_attention(*case.inputs, backend=backend) * 2)


def test_the_operator_is_registered_correctly(device):
    torch.library.opcheck(torch.ops.radar_kernels.tree_attention.default, (*Case(device=device).inputs, 0.25))


@pytest.mark.gpu
def test_one_captured_graph_serves_every_length(device):
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    case = Case(nodes=60, heads=8, prefix=(300,), dim=64, dtype=torch.bfloat16, device=device)
    case.key, case.value = case.key.nan_to_num(0), case.value.nan_to_num(0)
    tree_attention(*case.inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tree_attention(*case.inputs)
    for length in (300, 0, 1, 128, 299):
        case.prefix_length.fill_(length)
        graph.replay()
        exact = [x.double() if x.is_floating_point() else x for x in case.inputs]
        assert_close(out, reference.tree_attention(*exact), "tree_attention", torch.bfloat16)


@pytest.mark.gpu
def test_what_the_kernel_in_front_has_written_is_seen(device):
    """Keys and a length that arrive just before, in one graph: what is asked for early is never what is used."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    cases = [Case(nodes=60, heads=8, prefix=(n,), dim=64, dtype=torch.bfloat16, device=device) for n in (900, 130, 700)]
    capacity = min(case.key.shape[2] for case in cases)
    inputs = [[*(x[:, :, -capacity:].nan_to_num(0) for x in case.inputs[1:3]), case.inputs[3] // 10] for case in cases]
    query, ancestors = cases[0].query, cases[0].ancestors
    buffers = [x.clone() for x in inputs[0]]
    tree_attention(query, *buffers, ancestors)
    graph, out = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for case in inputs:
            for buffer, x in zip(buffers, case, strict=True):
                buffer.copy_(x)
            out.append(tree_attention(query, *buffers, ancestors))
    for _ in range(20):
        graph.replay()
        for got, case in zip(out, inputs, strict=True):
            exact = [x.double() if x.is_floating_point() else x for x in (query, *case, ancestors)]
            assert_close(got, reference.tree_attention(*exact), "tree_attention", torch.bfloat16)


BAD = {
    "query must be": {"query": torch.zeros(4, 8, 16)},
    "one shape": {"value": torch.zeros(1, 2, 3, 16)},
    "like the query": {"key": torch.zeros(1, 2, 9, 32), "value": torch.zeros(1, 2, 9, 32)},
    "multiple of key-value heads": {"key": torch.zeros(1, 3, 9, 16), "value": torch.zeros(1, 3, 9, 16)},
    "one float dtype": {"query": torch.zeros(1, 4, 8, 16, dtype=torch.float16)},
    "prefix_length must be int64": {"prefix_length": torch.zeros(1, dtype=torch.int32)},
    "ancestors must be int64": {"ancestors": torch.zeros(1, 7, 1, dtype=torch.int64)},
    "backend must be": {"backend": "cuda"},
    "one device": {"ancestors": torch.zeros(1, 8, 1, dtype=torch.int64, device="meta")},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    names = ("query", "key", "value", "prefix_length", "ancestors")
    with pytest.raises(ValueError, match=f"tree_attention: .*{message}"):
        tree_attention(**{**dict(zip(names, Case().inputs, strict=True)), **change})


def test_triton_on_cpu_tensors_needs_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' needs CUDA tensors"):
        tree_attention(*Case().inputs, backend="triton")
