"""One step of the stop policy: LSTM cell, two-layer head, decision."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import math

import torch
from torch import Tensor

from radar_kernels import reference
from radar_kernels._launch import Backend, Plan, architecture, choose_backend, jit, next_power_of_2, tl
from radar_kernels.reference import LstmStep, PolicyWeights

__all__ = ["LstmStep", "PolicyWeights", "lstm_step"]


@jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@jit
def cell_kernel(
    scores, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, new_hidden, new_cell, floor,
    INPUTS: tl.constexpr, INPUTS_PAD: tl.constexpr, HIDDEN: tl.constexpr, HIDDEN_PAD: tl.constexpr, UNITS: tl.constexpr,
    UPDATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """i, f, g, o = W_ih x + b_ih + W_hh h + b_hh;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c')  for UNITS units.

    The weights are read before the wait. With UPDATE new_cell is cell, of which a program touches its own units only;
    h' never goes to h, which every program reads.
    """
    batch = tl.program_id(1)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    gate = tl.arange(0, 4)
    row = (gate[:, None] * HIDDEN + unit[None, :]).reshape([4 * UNITS])
    real = ((gate * 0)[:, None] + unit[None, :]).reshape([4 * UNITS]) < HIDDEN
    h = tl.arange(0, HIDDEN_PAD)
    i = tl.arange(0, INPUTS_PAD)
    hh = tl.load(weight_hh + row[:, None] * HIDDEN + h[None, :], mask=real[:, None] & (h < HIDDEN)[None, :], other=0.0)
    ih = tl.load(weight_ih + row[:, None] * INPUTS + i[None, :], mask=real[:, None] & (i < INPUTS)[None, :], other=0.0)
    bias = tl.load(bias_ih + row, mask=real, other=0.0).to(tl.float32) + tl.load(
        bias_hh + row, mask=real, other=0.0
    ).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    state = tl.load(hidden + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
    x = tl.load(scores + batch * INPUTS + i, mask=i < INPUTS, other=0.0).to(tl.float32)
    x = tl.where(x < floor, floor, x)  # NaN stays NaN
    c = tl.load(cell + batch * HIDDEN + unit, mask=unit < HIDDEN, other=0.0).to(tl.float32)
    z = tl.sum(hh.to(tl.float32) * state[None, :], 1) + tl.sum(ih.to(tl.float32) * x[None, :], 1) + bias
    z = z.reshape([4, UNITS])
    z_i = tl.sum(tl.where(gate[:, None] == 0, z, 0.0), 0)
    z_f = tl.sum(tl.where(gate[:, None] == 1, z, 0.0), 0)
    z_g = tl.sum(tl.where(gate[:, None] == 2, z, 0.0), 0)
    z_o = tl.sum(tl.where(gate[:, None] == 3, z, 0.0), 0)
    c = tl.sigmoid(z_f) * c + tl.sigmoid(z_i) * _tanh(z_g)
    if UPDATE:
        tl.debug_barrier()  # the old cell is read before the new one overwrites it
    tl.store(new_cell + batch * HIDDEN + unit, c, mask=unit < HIDDEN)
    tl.store(new_hidden + batch * HIDDEN + unit, tl.sigmoid(z_o) * _tanh(c), mask=unit < HIDDEN)


@jit
def head_kernel(
    scores, new_hidden, weight0, bias0, weight3, bias3, threshold, logits, stop, hidden, floor,
    INPUTS: tl.constexpr, INPUTS_PAD: tl.constexpr, HIDDEN: tl.constexpr, MIDDLE: tl.constexpr,
    MIDDLE_PAD: tl.constexpr, CHUNK: tl.constexpr, THRESHOLD: tl.constexpr, UPDATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """l = W3 relu(W0 [h', x] + b0) + b3;  stop = softmax(l)[0] > threshold.  With UPDATE h' becomes h.

    The weights are read before the wait: the launch in front is `cell_kernel`, which does not write them, and which
    releases this one when all launches before it have ended.
    """
    batch = tl.program_id(0)
    m = tl.arange(0, MIDDLE_PAD)
    h = tl.arange(0, CHUNK)
    i = tl.arange(0, INPUTS_PAD)
    width: tl.constexpr = HIDDEN + INPUTS
    real = m < MIDDLE
    w_x = tl.load(
        weight0 + m[:, None] * width + HIDDEN + i[None, :], mask=real[:, None] & (i < INPUTS)[None, :], other=0.0
    )
    w_h = tl.load(weight0 + m[:, None] * width + h[None, :], mask=real[:, None] & (h < HIDDEN)[None, :], other=0.0)
    z = tl.load(bias0 + m, mask=real, other=0.0).to(tl.float32)
    w_stop = tl.load(weight3 + m, mask=real, other=0.0).to(tl.float32)
    w_continue = tl.load(weight3 + MIDDLE + m, mask=real, other=0.0).to(tl.float32)
    b_stop = tl.load(bias3).to(tl.float32)
    b_continue = tl.load(bias3 + 1).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    x = tl.load(scores + batch * INPUTS + i, mask=i < INPUTS, other=0.0).to(tl.float32)
    x = tl.where(x < floor, floor, x)  # NaN stays NaN
    state = tl.load(new_hidden + batch * HIDDEN + h, mask=h < HIDDEN, other=0.0)
    if UPDATE:
        tl.store(hidden + batch * HIDDEN + h, state, mask=h < HIDDEN)
    z += tl.sum(w_x.to(tl.float32) * x[None, :], 1) + tl.sum(w_h.to(tl.float32) * state[None, :], 1)
    for start in tl.range(CHUNK, HIDDEN, CHUNK, num_stages=1):  # not unrolled: its loads would not fit the registers
        k = start + h
        state = tl.load(new_hidden + batch * HIDDEN + k, mask=k < HIDDEN, other=0.0)
        if UPDATE:
            tl.store(hidden + batch * HIDDEN + k, state, mask=k < HIDDEN)
        w_h = tl.load(weight0 + m[:, None] * width + k[None, :], mask=real[:, None] & (k < HIDDEN)[None, :], other=0.0)
        z += tl.sum(w_h.to(tl.float32) * state[None, :], 1)
    z = tl.where(z < 0.0, 0.0, z)
    l_stop = tl.sum(z * w_stop, 0) + b_stop
    l_continue = tl.sum(z * w_continue, 0) + b_continue
    tl.store(logits + batch * 2, l_stop)
    tl.store(logits + batch * 2 + 1, l_continue)
    limit = 0.5
    if THRESHOLD:
        limit = tl.load(threshold + batch)
    tl.store(stop + batch, tl.sigmoid(l_stop - l_continue) > limit)


def cell_plan(*, batch: int, inputs: int, hidden: int, update: bool, arch: int) -> Plan:
    units = max(1, 256 // next_power_of_2(hidden))
    return Plan(
        grid=(-(-hidden // units), batch),
        constants={
            "INPUTS": inputs, "INPUTS_PAD": next_power_of_2(inputs),
            "HIDDEN": hidden, "HIDDEN_PAD": next_power_of_2(hidden), "UNITS": units,
            "UPDATE": update, "PDL": arch >= 90,
        },
        options={"num_warps": 1} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def head_plan(*, batch: int, inputs: int, hidden: int, middle: int, threshold: bool, update: bool, arch: int) -> Plan:
    middle_pad = next_power_of_2(middle)
    return Plan(
        grid=(batch,),
        constants={
            "INPUTS": inputs, "INPUTS_PAD": next_power_of_2(inputs),
            "HIDDEN": hidden, "MIDDLE": middle, "MIDDLE_PAD": middle_pad,
            "CHUNK": min(next_power_of_2(hidden), max(16, 16384 // middle_pad)),
            "THRESHOLD": threshold, "UPDATE": update, "PDL": arch >= 90,
        },
        options={"num_warps": 8} | ({"launch_pdl": True} if arch >= 90 else {}),
    )  # fmt: skip


def _outputs(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = hidden.shape[0]
    return (
        torch.empty_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format),
        torch.empty_like(hidden, dtype=torch.float32, memory_format=torch.contiguous_format),
        hidden.new_empty(batch, 2, dtype=torch.float32),
        hidden.new_empty(batch, dtype=torch.bool),
    )


def _run(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], threshold: Tensor | None, floor: float | None,
    new_hidden: Tensor, new_cell: Tensor, logits: Tensor, stop: Tensor, *, update: bool,
) -> None:  # fmt: skip
    (batch, inputs), size = scores.shape, hidden.shape[1]
    w = PolicyWeights(*weights)
    arch = architecture(scores.device)
    floor = -math.inf if floor is None else floor
    cell_plan(batch=batch, inputs=inputs, hidden=size, update=update, arch=arch).launch(
        cell_kernel, scores, hidden, cell, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, new_hidden, new_cell, floor
    )
    head = head_plan(
        batch=batch, inputs=inputs, hidden=size, middle=w.mlp0_bias.shape[0], threshold=threshold is not None,
        update=update, arch=arch,
    )  # fmt: skip
    head.launch(
        head_kernel, scores, new_hidden, w.mlp0_weight, w.mlp0_bias, w.mlp3_weight, w.mlp3_bias,
        logits if threshold is None else threshold, logits, stop, hidden, floor,
    )  # fmt: skip


@torch.library.custom_op("radar_kernels::lstm_step", mutates_args=())
def _launch(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], threshold: Tensor | None, floor: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _outputs(hidden)
    _run(scores, hidden, cell, weights, threshold, floor, *outputs, update=False)
    return outputs


@torch.library.custom_op("radar_kernels::lstm_step_", mutates_args=("hidden", "cell"))
def _launch_update(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], threshold: Tensor | None, floor: float | None
) -> tuple[Tensor, Tensor]:
    new_hidden, _, logits, stop = _outputs(hidden)
    _run(scores, hidden, cell, weights, threshold, floor, new_hidden, cell, logits, stop, update=True)
    return logits, stop


@_launch.register_fake
def _(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], threshold: Tensor | None, floor: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(hidden)


@_launch_update.register_fake
def _(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor], threshold: Tensor | None, floor: float | None
) -> tuple[Tensor, Tensor]:
    return _outputs(hidden)[2:]


def _check(
    scores: Tensor, hidden: Tensor, cell: Tensor, weights: PolicyWeights, threshold: Tensor | None, update: bool
) -> None:
    def expect(name: str, tensor: Tensor, *shape: int) -> None:
        if tensor.shape != shape or not tensor.dtype.is_floating_point:
            raise ValueError(f"lstm_step: {name} must be float {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")

    if scores.dim() != 2 or hidden.dim() != 2:
        raise ValueError(
            f"lstm_step: scores must be [B, I] and hidden [B, H], got {tuple(scores.shape)} and {tuple(hidden.shape)}"
        )
    (batch, inputs), size = scores.shape, hidden.shape[1]
    middle = weights.mlp0_bias.shape[0]
    expect("scores", scores, batch, inputs)
    expect("hidden", hidden, batch, size)
    expect("cell", cell, batch, size)
    expect("weight_ih", weights.weight_ih, 4 * size, inputs)
    expect("weight_hh", weights.weight_hh, 4 * size, size)
    expect("bias_ih", weights.bias_ih, 4 * size)
    expect("bias_hh", weights.bias_hh, 4 * size)
    expect("mlp0_weight", weights.mlp0_weight, middle, size + inputs)
    expect("mlp0_bias", weights.mlp0_bias, middle)
    expect("mlp3_weight", weights.mlp3_weight, 2, middle)
    expect("mlp3_bias", weights.mlp3_bias, 2)
    if threshold is not None:
        expect("threshold", threshold, batch)
    for name, state in (("hidden", hidden), ("cell", cell)) if update else ():
        if state.dtype != torch.float32 or not state.is_contiguous():
            raise ValueError(
                f"lstm_step: with update=True {name} must be float32 and contiguous, got {state.dtype} with strides "
                f"{state.stride()}; use update=False for other states"
            )


def lstm_step(
    scores: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: PolicyWeights,
    *,
    threshold: Tensor | None = None,
    floor: float | None = None,
    update: bool = False,
    backend: Backend | None = None,
) -> LstmStep:
    """Advance the stop policy by one draft level. All arithmetic is in float32, whatever the dtypes.

    Args:
        scores: [B, I], cumulative log-probabilities of the level's beam, descending.
        hidden, cell: [B, H], the state; zeros before the first level. Modified with `update` only.
        weights: see `PolicyWeights`; torch.nn.LSTM's gate order i, f, g, o. The head reads cat(hidden', scores). On a
            GPU they are read early, so not what the very launch in front of this one writes.
        threshold: [B], stop where softmax(logits)[0] is greater. None is 0.5, the greedy decision; uniform random
            numbers sample from the policy.
        floor: scores below it count as it, so that -inf can come in.
        update: overwrite `hidden` and `cell` (float32, contiguous) with the new state, and return them as it.
        backend: "triton" or "torch"; default Triton on CUDA, PyTorch elsewhere.

    Returns:
        LstmStep(hidden [B, H], cell [B, H], logits [B, 2], all float32, stop [B] bool); action 0 is stop.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the backend cannot run here.

    Source: the policy network of RADAR (arXiv 2512.14069).
    """
    _check(scores, hidden, cell, weights, threshold, update)
    tensors = (scores, hidden, cell, *weights, *(() if threshold is None else (threshold,)))
    if choose_backend("lstm_step", backend, *tensors) == "torch":
        return reference.lstm_step(scores, hidden, cell, weights, threshold=threshold, floor=floor, update=update)
    threshold = None if threshold is None else threshold.contiguous()
    scores, rest = scores.contiguous(), ([w.contiguous() for w in weights], threshold, floor)
    if update:
        return LstmStep(hidden, cell, *_launch_update(scores, hidden, cell, *rest))
    return LstmStep(*_launch(scores, hidden.contiguous(), cell.contiguous(), *rest))
