"""skinny_linear: the kernel against float64, a row's bits among any number of rows, and what its plans depend on."""

import importlib

import pytest
import torch
from tolerances import relative_error
from torch.nn import functional as F

from radar_kernels import skinny_linear

op = importlib.import_module("radar_kernels.skinny_linear")
LIMITS = {  # RMS of the error over RMS of the result
    torch.float32: 2e-6,  # F.linear: the order of the sum
    torch.float16: 3e-4,  # one rounding to 11 bits
    torch.bfloat16: 2.4e-3,  # one rounding to 8 bits
}
BLOCKS = {
    "narrow": op.Blocks(32, 64, 4, 40_000),
    "wide": op.Blocks(128, 32, 4, 40_000),
    "as chosen": op.choose_blocks(n=4096),
}
SHAPES = [(1, 96, 128), (10, 100, 192), (16, 33, 80), (17, 257, 64), (33, 130, 208), (60, 7, 16), (64, 64, 128)]


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def blocks(request, monkeypatch):
    monkeypatch.setattr(op, "choose_blocks", lambda **_: request.param)
    monkeypatch.setattr(op, "MANY_OUTPUTS", 0)  # any number of rows
    return request.param


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that were launched."""
    names = []
    launch = op.Plan.launch

    def record(plan, kernel, *arguments):
        names.append(kernel.fn.__name__)
        launch(plan, kernel, *arguments)

    monkeypatch.setattr(op.Plan, "launch", record)
    return names


def make(rows, n, k, *, dtype=torch.float16, device="cpu"):
    """x [rows, K], weight [N, K], bias [N], each followed by NaN: x after every row, weights and bias at the end."""

    def poisoned(shape, *, each_row):
        count = shape[0] if each_row else 1
        buffer = torch.full((count, torch.Size(shape).numel() // count + 64), float("nan"), dtype=dtype, device=device)
        inside = buffer[:, : buffer.shape[1] - 64]
        inside.copy_(torch.randn(inside.shape, device=device))
        return inside if each_row else inside.view(shape)

    return poisoned((rows, k), each_row=True), poisoned((n, k), each_row=False), poisoned((n,), each_row=False)


def exact(x, weight, bias=None):
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def assert_close(got, expected, dtype):
    assert got.shape == expected.shape
    assert got.dtype == dtype
    assert got.is_contiguous()
    error = relative_error(got, expected)
    assert error <= LIMITS[dtype], f"relative RMS error {error:.2e} is over {LIMITS[dtype]:.1e}"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_kernel_equals_float64(shape, blocks, kernel_dtype, device, launched):
    x, weight, bias = make(*shape, dtype=kernel_dtype, device=device)
    assert_close(skinny_linear(x, weight, backend="triton"), exact(x, weight), kernel_dtype)
    assert_close(skinny_linear(x, weight, bias, backend="triton"), exact(x, weight, bias), kernel_dtype)
    on_hopper = device.type == "cpu" or torch.cuda.get_device_capability() == (9, 0)
    assert launched == ([] if kernel_dtype == torch.float32 or not on_hopper else 2 * ["linear_kernel"])


def cancelling(rows, n, k, depth, *, dtype, device):
    """x and weight whose sum depends on the order of their blocks of `depth` columns, but not on that in a block.

    Each block is exact, in any order: the interpreter's product of a block is that of a BLAS, which takes another order
    for another number of rows. Large blocks that cancel round what is added up between them.
    """
    x, weight = (torch.randint(-7, 8, (lines, k // depth, depth)) for lines in (rows, n))
    for block in range(0, k // depth - 3, 4):
        x[:, block] *= 2**8
        x[:, block + 3] = x[:, block]
        weight[:, block] *= 2**10
        weight[:, block + 3] = -weight[:, block]
    return x.flatten(1).to(device, dtype), weight.flatten(1).to(device, dtype)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 40, 64])
def test_a_row_has_the_same_bits_among_any_number_of_rows(rows, blocks, kernel_dtype, device):
    """On a GPU this is about the order of the tensor cores too, so there any numbers will do."""
    if kernel_dtype == torch.float32:
        pytest.skip("F.linear promises nothing of the kind")
    inputs = [cancelling(64, 160, 1024, blocks.depth, dtype=kernel_dtype, device=device)]
    if device.type == "cuda":
        inputs.append(make(64, 160, 1024, dtype=kernel_dtype, device=device)[:2])
    for x, weight in inputs:
        everyone = skinny_linear(x, weight, backend="triton")
        for first in {0, 64 - rows}:
            some = skinny_linear(x[first : first + rows], weight, backend="triton")
            assert torch.equal(some, everyone[first : first + rows])


@pytest.mark.parametrize("change", [{"depth": 128}, {"depth": 16}], ids=str)
def test_another_order_has_other_bits(change, device, monkeypatch):
    """That the inputs tell orders apart, in the interpreter, which adds up a block at once."""
    if device.type == "cuda":
        pytest.skip("tensor cores go through k in the same short steps, whatever a block's depth")
    monkeypatch.setattr(op, "MANY_OUTPUTS", 0)
    x, weight = cancelling(10, 160, 1024, 64, dtype=torch.float16, device=device)
    results = []
    for blocks in (BLOCKS["narrow"], BLOCKS["narrow"]._replace(**change)):
        monkeypatch.setattr(op, "choose_blocks", lambda blocks=blocks, **_: blocks)
        results.append(skinny_linear(x, weight, backend="triton"))
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("n", "k"), [(6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096), (32000, 4096), (96, 80)]
)
def test_plans(n, k):
    """Rows decide padding and steps in flight, nothing that orders a sum; more than a few rows are cuBLAS's."""
    plans = []
    for rows in (1, 10, 16, 17, 33, 64):
        plan = op.skinny_plan(rows=rows, n=n, k=k, dtype=torch.bfloat16, bias=False, arch=90)
        if rows > 16 and n < 65536:
            assert plan is None
            continue
        assert plan.constants["ROWS"] >= max(rows, 16)
        assert plan.options["launch_pdl"]
        assert plan.grid[0] * plan.constants["BN"] >= n > (plan.grid[0] - 1) * plan.constants["BN"]
        assert 2 <= plan.constants["STAGES"] <= 8
        for values in (plan.constants, plan.options):
            for name in ("ROWS", "STAGES", "num_stages"):
                values.pop(name, None)
        plans.append(plan)
    assert all(plan == plans[0] for plan in plans)


@pytest.mark.parametrize(
    "change",
    [{"rows": 0}, {"rows": 65}, {"k": 4100}, {"dtype": torch.float32}, {"dtype": torch.float64}]
    + [{"arch": arch} for arch in (75, 80, 100, 120)],
    ids=str,
)
def test_what_the_kernel_cannot_do_or_was_not_measured_at_has_no_plan(change):
    shape = {"rows": 10, "n": 4096, "k": 4096, "dtype": torch.bfloat16, "bias": False, "arch": 90}
    assert op.skinny_plan(**shape) is not None
    assert op.skinny_plan(**shape | change) is None


def test_leading_dimensions_and_strides(device, launched):
    _, weight, bias = make(1, 48, 64, device=device)
    wide = torch.randn(2, 3, 5, 128, device=device).half()
    for x in (
        wide[:1, ..., :64],
        wide[1:, ..., ::2],
        wide[:, 1, :, 64:],
        wide[..., :64].transpose(0, 2)[:1],
        wide[0, 0, 0, :64],
        wide[:1, :1, :1, :64].expand(1, 4, 3, 64),
    ):
        assert_close(skinny_linear(x, weight, bias, backend="triton"), exact(x, weight, bias), torch.float16)
    assert launched == 6 * ["linear_kernel"]


@pytest.mark.parametrize(
    "case",
    ["65 rows", "no rows", "K of 20", "K of 0", "float32", "weight by columns", "weight on 2 bytes", "backend torch"],
)
def test_everything_else_goes_to_linear(case, device, launched):
    rows, k = {"65 rows": (65, 64), "no rows": (0, 64), "K of 20": (4, 20), "K of 0": (4, 0)}.get(case, (4, 64))
    dtype = torch.float32 if case == "float32" else torch.float16
    x, weight = torch.randn(rows, k, device=device, dtype=dtype), torch.randn(24, k, device=device, dtype=dtype)
    if case == "weight by columns":
        weight = weight.T.contiguous().T
    if case == "weight on 2 bytes":
        weight = torch.randn(24 * k + 1, device=device, dtype=dtype)[1:].view(24, k)
    got = skinny_linear(x, weight, backend="torch" if case == "backend torch" else "triton")
    assert torch.equal(got, F.linear(x, weight))
    assert launched == []


@pytest.mark.parametrize("bias", [False, True])
def test_the_op_can_be_traced(bias, device):
    x, weight, b = make(3, 48, 64, device=device)
    torch.library.opcheck(
        op._launch, (x[None], weight, b if bias else None), test_utils=("test_schema", "test_faketensor")
    )
    compiled = torch.compile(
        lambda *inputs: skinny_linear(*inputs, backend="triton") * 2, backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(x, weight, b), 2 * skinny_linear(x, weight, b, backend="triton"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 32)}, r"x must be \[..., K\]"),
        ({"weight": torch.zeros(64)}, r"weight \[N, K\]"),
        ({"weight": torch.zeros(8, 64, dtype=torch.float16)}, "one float dtype"),
        ({"bias": torch.zeros(9)}, r"bias must be torch.float32 \[8\]"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, r"bias must be torch.float32 \[8\]"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {"x": torch.zeros(2, 64), "weight": torch.zeros(8, 64), "bias": torch.zeros(8)}
    skinny_linear(**inputs)
    with pytest.raises(ValueError, match=message):
        skinny_linear(**inputs | change)
