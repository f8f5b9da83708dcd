"""skinny_linear: the kernel against float64, a row's bits among any number of rows, and what its plans depend on."""

import importlib

import pytest
import torch
from emulator import emulate
from tolerances import relative_error
from torch.nn import functional as F

from radar_kernels import quantize_rows, skinny_linear
from radar_kernels.quantize_rows import unpack_rows

op = importlib.import_module("radar_kernels.skinny_linear")
LIMITS = {  # RMS of the error over RMS of the result
    torch.float32: 2e-6,  # F.linear: the order of the sum
    torch.float16: 3e-4,  # one rounding to 11 bits
    torch.bfloat16: 2.4e-3,  # one rounding to 8 bits
}
PLAIN = {  # for Triton's interpreter, and cards whose Triton has no Gluon that we know
    "plain, narrow": op.Blocks(32, 64, 4, 40_000),
    "plain, wide": op.Blocks(128, 32, 4, 40_000, rows=64),
    "plain": op.plain_blocks(n=4096),
}
STREAMED = {  # for a Hopper card; emulator.py stands in for it
    "one part": op.Blocks(64, 64, 4, 70_000),
    "two parts": op.Blocks(64, 64, 4, 100_000, parts=2, rows=64),
    "four parts": op.Blocks(128, 64, 4, 100_000, parts=4),
    "as chosen": op.choose_blocks(n=4096, k=4096, narrow=False),
}
SHAPES = [(1, 96, 128), (10, 100, 192), (16, 33, 80), (17, 257, 64), (33, 130, 208), (60, 7, 16), (130, 64, 1024)]
EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]


@pytest.fixture(params=[*PLAIN, *STREAMED])
def blocks(request, monkeypatch, device):
    if request.param in PLAIN:
        monkeypatch.setattr(op, "STREAMED", False)
        monkeypatch.setattr(op, "plain_blocks", lambda **_: PLAIN[request.param])
        return PLAIN[request.param]
    monkeypatch.setattr(op, "choose_blocks", lambda **_: STREAMED[request.param])
    if device.type == "cpu":
        monkeypatch.setattr(op, "architecture", lambda _: 90)
        monkeypatch.setattr(op.Plan, "launch", on_cpu(op.Plan.launch))
    return STREAMED[request.param]


def on_cpu(launch):
    """Kernels in Gluon by the emulator, others by the interpreter."""

    def run(plan, kernel, *arguments):
        if kernel.fn.__name__ == "linear_kernel":
            emulate(plan, kernel, *arguments)
        else:
            launch(plan._replace(constants=plan.constants | {"PDL": False}, options={}), kernel, *arguments)

    return run


@pytest.fixture
def launched(blocks, monkeypatch):
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
    if kernel_dtype == torch.float32 or not on_hopper:
        assert launched == []
    elif blocks in PLAIN.values():
        assert launched == 2 * ["plain_kernel"]
    else:
        assert set(launched) - {"sum_kernel"} == {"linear_kernel"}


@pytest.mark.parametrize(
    "shape", [*SHAPES[:4], SHAPES[-1], (300, 64, 256)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("eight", EIGHT_BITS, ids=str)
def test_weights_of_8_bits(shape, blocks, eight, device, launched):
    x, weight, bias = make(*shape, device=device)
    weight8, scale = quantize_rows(weight, eight)
    own = unpack_rows(weight8.float(), shape[2])
    assert relative_error(own * scale[:, None], weight) < (0.01 if eight == torch.int8 else 0.03)
    got = skinny_linear(x, weight8, bias, scale=scale, backend="triton")
    expected = exact(x, own.double() * scale[:, None].double(), bias)
    assert_close(got, expected, torch.float16)
    assert_close(skinny_linear(x, weight8, bias, scale=scale, backend="torch"), expected, torch.float16)
    assert launched or torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: the registers of a real kernel")
@pytest.mark.parametrize(("n", "rows"), [(n, rows) for n in (32000, 21504, 6144) for rows in (10, 40, 64, 80, 200)])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("eight", EIGHT_BITS, ids=str)
def test_weights_of_8_bits_at_the_size_of_a_head(n, rows, streamed, eight, device, monkeypatch):
    """Sums of many steps, whose products the card makes while the next weights are read."""
    monkeypatch.setattr(op, "STREAMED", op.STREAMED and streamed)
    weight8, scale = quantize_rows(torch.randn(n, 4096, device=device, dtype=torch.bfloat16), eight)
    exactly = unpack_rows(weight8.float(), 4096).double() * scale[:, None].double()
    for _ in range(3):
        x = torch.randn(rows, 4096, device=device, dtype=torch.bfloat16)
        assert_close(skinny_linear(x, weight8, scale=scale), F.linear(x.double(), exactly), torch.bfloat16)


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


@pytest.mark.parametrize("rows", [1, 17, 60, 128])
def test_a_row_has_the_same_bits_among_any_number_of_rows(rows, blocks, kernel_dtype, device):
    """On a GPU this is about the order of the tensor cores too, so there any numbers will do."""
    if kernel_dtype == torch.float32:
        pytest.skip("F.linear promises nothing of the kind")
    inputs = [cancelling(200, 160, 1024, blocks.depth, dtype=kernel_dtype, device=device)]
    if device.type == "cuda":
        inputs.append(make(200, 160, 1024, dtype=kernel_dtype, device=device)[:2])
    for x, weight in inputs:
        everyone = skinny_linear(x, weight, backend="triton")
        for first in (0, 200 - rows):
            some = skinny_linear(x[first : first + rows], weight, backend="triton")
            assert torch.equal(some, everyone[first : first + rows])


@pytest.mark.parametrize(
    ("blocks", "change"),
    [("plain, narrow", {"depth": 128}), ("plain, narrow", {"depth": 16}), ("one part", {"parts": 2})],
    indirect=["blocks"],
)
def test_another_order_has_other_bits(blocks, change, device, monkeypatch):
    """That the inputs tell orders apart, on a CPU, which adds up a block at once."""
    if device.type == "cuda":
        pytest.skip("tensor cores go through k in the same short steps, whatever a block's depth")
    x, weight = cancelling(10, 160, 1024, 64, dtype=torch.float16, device=device)
    results = []
    for some in (blocks, blocks._replace(**change)):
        for name in ("choose_blocks", "plain_blocks"):
            monkeypatch.setattr(op, name, lambda some=some, **_: some)
        results.append(skinny_linear(x, weight, backend="triton"))
    assert not torch.equal(*results)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("name", [None, "two parts", "four parts"])
@pytest.mark.parametrize(
    ("n", "k"), [(6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096), (32000, 4096), (96, 80)]
)
def test_plans(n, k, name, narrow, streamed, monkeypatch):
    """Rows decide padding, steps in flight and who sums a part, nothing that orders a sum."""
    monkeypatch.setattr(op, "STREAMED", streamed)
    if name:
        monkeypatch.setattr(op, "choose_blocks", lambda **_: STREAMED[name])
    orders = set()
    for rows in (1, 10, 16, 17, 33, 64, 65, 128, 256):
        how = {"dtype": torch.bfloat16, "bias": False, "arch": 90, "narrow": narrow}
        plan, add, box = op.skinny_plan(rows=rows, n=n, k=k, **how)
        constants = plan.constants
        assert constants["STAGES"] == 1 if narrow and not streamed else constants["STAGES"] > 1
        assert plan.grid[0] * constants["ROWS"] >= rows
        assert (plan.grid[1] - 1) * constants["BN"] < n <= plan.grid[1] * constants["BN"]
        assert box == (constants["BN"], constants["ROWS"], constants["BK"])
        assert plan.options["launch_pdl"]
        size = constants["STAGES"] * (constants["BN"] * (1 if narrow else 2) + constants["ROWS"] * 2) * constants["BK"]
        assert size + 1024 <= 232448
        assert (add is None) == (plan.grid[2:] in ((), (1,)))
        assert plan.grid[2:] in ((), (1,), (constants.get("PARTS"),))
        orders.add((constants["BK"], constants.get("PARTS", 1)))
    assert len(orders) == 1


@pytest.mark.parametrize(
    "change",
    [{"rows": 0}, {"rows": 257}, {"k": 4100}, {"dtype": torch.float32}, {"dtype": torch.float64}]
    + [{"arch": arch} for arch in (75, 80, 100, 120)],
    ids=str,
)
def test_what_the_kernel_cannot_do_or_was_not_measured_at_has_no_plan(change):
    shape = {"rows": 10, "n": 4096, "k": 4096, "dtype": torch.bfloat16, "bias": False, "arch": 90}
    assert op.skinny_plan(**shape) is not None
    assert op.skinny_plan(**shape | change) is None


@pytest.mark.parametrize("blocks", ["plain", "one part"], indirect=True)
def test_leading_dimensions_and_strides(blocks, device, launched):
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
    assert launched == 6 * ["plain_kernel" if blocks in PLAIN.values() else "linear_kernel"]


@pytest.mark.parametrize("blocks", ["plain", "one part"], indirect=True)
@pytest.mark.parametrize(
    "case",
    ["257 rows", "no rows", "K of 20", "K of 0", "float32", "weight by columns", "weight on 2 bytes", "backend torch"],
)
def test_everything_else_goes_to_linear(case, device, launched):
    rows, k = {"257 rows": (257, 64), "no rows": (0, 64), "K of 20": (4, 20), "K of 0": (4, 0)}.get(case, (4, 64))
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
        op._launch, (x[None], weight, b if bias else None, None), test_utils=("test_schema", "test_faketensor")
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
        ({"scale": torch.ones(8)}, "K rounded up to 128"),
        ({"scale": torch.ones(8), "weight": torch.zeros(8, 128)}, "weight int8 or float8_e4m3fn"),
        (
            {"scale": torch.ones(9), "weight": torch.zeros(8, 128, dtype=torch.int8)},
            r"scale must be torch.float32 \[8\]",
        ),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {"x": torch.zeros(2, 64), "weight": torch.zeros(8, 64), "bias": torch.zeros(8)}
    skinny_linear(**inputs)
    with pytest.raises(ValueError, match=message):
        skinny_linear(**inputs | change)
