"""rotate_store: the reference against stock modules, the kernel against the reference, and what it may not touch."""

import pytest
import torch
from tolerances import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from radar_kernels import HeadNorms, reference_layer, rotate_store

CAPACITY = 20
MANY = 16 if torch.cuda.is_available() else 5  # rows: the interpreter takes milliseconds for each program
LOADS_ARE_WIDENED = True
SHAPES = {
    "a tree": {"nodes": 7, "heads": 8, "kv_heads": 2, "dim": 32},
    "one row": {"nodes": 1, "heads": 8, "kv_heads": 8, "dim": 128},
    "odd heads, batch 3": {"batch": 3, "nodes": 2, "heads": 9, "kv_heads": 3, "dim": 24},
    "6 to 2, a full cache": {"nodes": 20, "heads": 6, "kv_heads": 2, "dim": 8},
}
OPTIONS = ["rows", "one row for the batch", "table", "norms"]


class Case:
    """Parts of a fused product, and a cache that is a view in the middle of a larger buffer."""

    def __init__(self, option="rows", *, batch=1, nodes=5, heads=4, kv_heads=2, dim=16, dtype, device):
        def random(*shape):
            return torch.randn(*shape, device=device).to(dtype)

        whole = random(batch, nodes, (heads + 2 * kv_heads) * dim + 8)[..., 8:]
        self.parts = whole.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        self.buffers = [random(batch, kv_heads, CAPACITY + 5, dim + 8) for _ in range(2)]
        self.start = torch.randint(0, CAPACITY - nodes + 1, (batch,), device=device)
        self.options = {}
        self.positions = torch.randint(0, 50, (batch, nodes), device=device)
        self.table = random(2, 50, dim)
        self.rows = self.table[:, self.positions]
        self.angles = self.rows
        if option == "table":
            self.angles, self.options["positions"] = self.table, self.positions
        elif option == "one row for the batch":
            self.rows = self.angles = self.rows[:, :1]
        elif option == "norms":
            self.options["norms"] = HeadNorms(random(dim), random(dim), 1e-6)

    def caches(self, buffers):
        return [buffer[..., 3:-2, 8:] for buffer in buffers]

    def run(self, backend, rows=slice(None)):
        """Queries and buffers afterwards."""
        buffers = [buffer.clone() for buffer in self.buffers]
        angles, options = self.angles, dict(self.options)
        if "positions" in options:
            options["positions"] = options["positions"][:, rows]
        else:
            angles = angles[:, :, rows]
        parts = [part[:, rows] for part in self.parts]
        start = self.start + (rows.start or 0)
        query = rotate_store(*parts, *angles, *self.caches(buffers), start, **options, backend=backend)
        return query, buffers


@pytest.mark.parametrize("option", OPTIONS)
def test_reference_is_what_stock_modules_do(option, kernel_dtype, device):
    case = Case(option, batch=2, dtype=kernel_dtype, device=device)
    query, buffers = case.run("torch")
    q, k, v = (part.unflatten(-1, (-1, 16)) for part in case.parts)
    if option == "norms":
        norms = case.options["norms"]
        modules = [Qwen3RMSNorm(16, norms.eps).to(device, kernel_dtype) for _ in range(2)]
        for module, weight in zip(modules, norms[:2], strict=True):
            module.weight.data.copy_(weight)
        q, k = modules[0](q), modules[1](k)
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *case.rows)
    assert torch.equal(query, q)
    keys, values = case.caches(buffers)
    for b, first in enumerate(case.start.tolist()):
        assert torch.equal(keys[b, :, first : first + 5], k[b])
        assert torch.equal(values[b, :, first : first + 5], v[b].transpose(0, 1))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference_and_writes_nothing_else(shape, option, kernel_dtype, device):
    case = Case(option, **shape, dtype=kernel_dtype, device=device)
    query, buffers = case.run("triton")
    expected, wanted = case.run("torch")
    assert query.stride(-1) == 1
    if option == "norms":  # summed in another order
        for found, right in zip((query, *buffers), (expected, *wanted), strict=True):
            assert_close(found, right, "rotate_store", kernel_dtype)
        assert torch.equal(buffers[1], wanted[1])
        for found, before, right in zip(buffers, case.buffers, wanted, strict=True):
            assert torch.equal(found == before, right == before)
    else:
        assert torch.equal(query, expected)
        assert all(torch.equal(a, b) for a, b in zip(buffers, wanted, strict=True))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rows", [1, MANY - 1])
def test_a_row_has_the_same_bits_beside_any_others(rows, option, kernel_dtype, device):
    case = Case(option, nodes=MANY, dim=64, dtype=kernel_dtype, device=device)
    everyone, buffers = case.run("triton")
    for first in {0, MANY - rows}:
        some, others = case.run("triton", slice(first, first + rows))
        assert torch.equal(some, everyone[:, :, first : first + rows])
        at = slice(int(case.start) + first, int(case.start) + first + rows)
        for a, b in zip(case.caches(others), case.caches(buffers), strict=True):
            assert torch.equal(a[:, :, at], b[:, :, at])


def test_never_writes_outside_of_the_cache(device):
    """Two of five rows would lie behind it, where the larger buffer goes on."""
    case = Case(dtype=torch.float32, device=device)
    case.start = torch.tensor([CAPACITY - 3], device=device)
    _, buffers = case.run("triton")
    for found, before in zip(buffers, case.buffers, strict=True):
        assert torch.equal(found[:, :, 3 + CAPACITY :], before[:, :, 3 + CAPACITY :])
        assert not torch.equal(found, before)


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_layer, "rotate_store", lambda *_, **__: "rotated")
    assert Case(dtype=torch.float32, device="cpu").run(None)[0] == "rotated"


X = torch.zeros


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": X(1, 2, 17)}, r"query must be \[1, N, H \* 8\]"),
        ({"key": X(1, 2, 8)}, r"key and value must be \[1, 2, 16\]"),
        ({"value": X(1, 3, 16)}, r"key and value must be \[1, 2, 16\]"),
        ({"cos": X(1, 2, 4)}, r"cos and sin must be \[1 or 1, 2, 8\]"),
        ({"cos": X(1, 2, 8).half()}, "must share one float dtype"),
        ({"key_cache": X(1, 2, 6, 7)}, "with an even D"),
        ({"start": X(2, dtype=torch.int64)}, r"start must be int64 \[1\]"),
        ({"start": X(1)}, r"start must be int64 \[1\]"),
        ({"positions": X(1, 3, dtype=torch.int64)}, r"positions must be int64 \[1, 2 or 1\]"),
        ({"positions": X(1, 2, dtype=torch.int64)}, r"cos and sin must be \[T, 8\]"),
        ({"norms": HeadNorms(X(8), X(7), 1e-5)}, r"norms must be weights \[8\]"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {
        "query": X(1, 2, 32), "key": X(1, 2, 16), "value": X(1, 2, 16), "cos": X(1, 2, 8), "sin": X(1, 2, 8),
        "key_cache": X(1, 2, 6, 8), "value_cache": X(1, 2, 6, 8), "start": X(1, dtype=torch.int64),
    }  # fmt: skip
    assert rotate_store(**inputs).shape == (1, 4, 2, 8)
    with pytest.raises(ValueError, match=message):
        rotate_store(**inputs | change)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_makes_its_key_none(bad, kernel_dtype, device):
    """0 * NaN = NaN: such a value would spoil those that do not see it; its key tells those that do."""
    heads, kv_heads, dim = 4, 2, 16
    query, key, value = (torch.randn(1, 3, n * dim).to(device, kernel_dtype) for n in (heads, kv_heads, kv_heads))
    cos, sin = (torch.randn(1, 3, dim).to(device, kernel_dtype) for _ in range(2))
    value[0, 1, dim + 3] = bad
    start = torch.ones(1, dtype=torch.int64, device=device)
    for backend in ("torch", "triton"):
        keys, values = torch.zeros(2, 1, kv_heads, 8, dim, dtype=kernel_dtype, device=device)
        rotate_store(query, key, value, cos, sin, keys, values, start, backend=backend)
        assert bool(keys[0, 1, 2].isnan().all())
        assert bool((values[0, 1, 2] == 0).all())
        keys[0, 1, 2] = 0
        assert bool(keys.isfinite().all()), backend
        assert bool(values.isfinite().all()), backend
        assert torch.equal(values[0, 0, 1:4], value[0].unflatten(1, (kv_heads, dim))[:, 0])
