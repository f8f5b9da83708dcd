"""Runs a Gluon kernel on the CPU, program after program: Triton's interpreter does not know Gluon.

What happens on its own on a card happens here as late as it may. A tile that is being fetched is NaN until somebody has
waited for its barrier; a product reads its operands when somebody waits for it, and registers that nothing names any
more are another's by then. So a slot that is filled again too early, registers that a product still reads, a barrier
that counts wrongly and an input that is read before the kernel in front has ended are seen.
"""

import itertools
import math
import types
import weakref
from types import SimpleNamespace

import torch


class Element:
    """A dtype as kernels see it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.torch = dtype
        self.primitive_bitwidth = 8 * dtype.itemsize


class Register(torch.Tensor):
    def to(self, dtype):
        return super().to(dtype.torch if isinstance(dtype, Element) else dtype)


def register(tensor: torch.Tensor) -> Register:
    return tensor.as_subclass(Register)


class Pointer:
    def __init__(self, machine, tensor, offsets=0) -> None:
        self.machine, self.tensor, self.offsets = machine, tensor, offsets
        self.dtype = SimpleNamespace(element_ty=Element(tensor.dtype))

    def __add__(self, offsets):
        return Pointer(self.machine, self.tensor, self.offsets + offsets)


class Barrier:
    def __init__(self) -> None:
        self.phase, self.count, self.missing, self.bytes, self.under_way = 0, None, 0, 0, []


class Tile:
    """A part of shared memory."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def index(self, slot):
        return self.data[int(slot)] if isinstance(self.data, list) else Tile(self.data[int(slot)])

    def permute(self, order):
        return Tile(self.data.permute(order))

    def load(self, layout):
        return register(self.data.clone())


class Machine:
    """One program; its attributes are the names that a kernel finds in Gluon."""

    def __init__(self, program: tuple[int, ...], warps: int, own: set[int]) -> None:
        self.program, self.warps, self.own, self.alone = program, warps, own, False
        self.barriers: list[Barrier] = []
        self.products: list[list] = []  # accumulators and their operands, in the order they were asked for

    def namespace(self):
        nothing = lambda *_, **__: None  # noqa: E731
        mbarrier = SimpleNamespace(MBarrierLayout=nothing, init=self.init, expect=self.expect, wait=self.wait)
        hopper = SimpleNamespace(
            mbarrier=mbarrier, warpgroup_mma=self.multiply, warpgroup_mma_wait=self.finish,
            warpgroup_mma_init=lambda y: y,
        )  # fmt: skip
        names = (
            "NVMMADistributedLayout",
            "BlockedLayout",
            "SliceLayout",
            "DotOperandLayout",
            "DistributedLinearLayout",
        )
        gl = SimpleNamespace(
            **dict.fromkeys(names, nothing), num_warps=lambda: self.warps, program_id=lambda axis: self.program[axis],
            minimum=min, static_range=range, float32=torch.float32, int64=torch.int64, load=self.load, store=self.store,
            zeros=lambda shape, dtype, layout: register(torch.zeros(shape, dtype=dtype)),
            arange=lambda first, last, layout: register(torch.arange(first, last)),
            convert_layout=lambda y, layout: y, allocate_shared_memory=self.allocate,
        )  # fmt: skip
        cuda = SimpleNamespace(gdc_wait=self.gdc_wait, gdc_launch_dependents=nothing)
        tl = SimpleNamespace(extra=SimpleNamespace(cuda=cuda))
        return {"gl": gl, "hopper": hopper, "tl": tl, "load_tile": self.fetch, "min": min}

    def gdc_wait(self):
        self.alone = True

    def allocate(self, dtype, shape, layout):
        if dtype == torch.int64:
            self.barriers = [Barrier() for _ in range(shape[0])]
            return Tile(self.barriers)
        kind = dtype.torch
        return Tile(poison(torch.empty(shape, dtype=kind)))

    def init(self, barrier, count):
        barrier.count = barrier.missing = count

    def expect(self, barrier, size, pred=True):
        if pred:
            assert barrier.missing > 0, "a barrier is armed twice"
            barrier.missing -= 1
            barrier.bytes += size

    def fetch(self, descriptor, at, barrier, tile, pred=True):
        if not pred:
            return
        assert self.alone or id(descriptor.base) in self.own, "read before the kernel in front has ended"
        assert list(tile.data.shape) == list(descriptor.block_shape)
        poison(tile.data)
        source = descriptor.base
        lines, columns = (slice(first, first + size) for first, size in zip(at, tile.data.shape, strict=True))
        part = source[lines, columns]
        barrier.under_way.append((tile.data, part))

    def wait(self, barrier, parity):
        if barrier.phase % 2 != parity:
            return
        for data, part in barrier.under_way:
            data.zero_()
            data[: part.shape[0], : part.shape[1]] = part
            barrier.bytes -= math.prod(data.shape) * data.element_size()
        barrier.under_way = []
        assert (barrier.missing, barrier.bytes) == (0, 0), "nobody will ever pass this barrier"
        barrier.phase, barrier.missing = barrier.phase + 1, barrier.count

    def multiply(self, a, b, y, *, is_async):
        y = register(y.clone())
        self.products.append([y, a if isinstance(a, Tile) else (weakref.ref(a), a.clone()), b])
        return y if is_async else self.finish(0, (y,))

    def finish(self, outstanding, deps):
        while len(self.products) > outstanding:
            y, a, b = self.products.pop(0)
            b = b.data
            a = a.data if isinstance(a, Tile) else a[1] if a[0]() is not None else poison(a[1])
            y += (a.double() @ b.double()).float()  # a block of columns at once, exactly, then one rounding
            for later in self.products:
                later[0].copy_(y)  # each goes on with the sum of the one in front
        (y,) = deps
        return y

    def load(self, pointer, mask=None, other=0.0):
        assert self.alone, "read before the kernel in front has ended"
        flat = pointer.tensor.flatten()
        at = torch.as_tensor(pointer.offsets).as_subclass(torch.Tensor)
        return register(torch.where(mask, flat[torch.where(mask, at, 0)], other).to(flat.dtype))

    def store(self, pointer, value, mask):
        assert self.alone, "written before the kernel in front has ended"
        at, mask, value = (t.as_subclass(torch.Tensor) for t in torch.broadcast_tensors(pointer.offsets, mask, value))
        pointer.tensor.view(-1)[at[mask]] = value[mask]


def poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan") if tensor.dtype.is_floating_point else 77)


def emulate(plan, kernel, *arguments) -> None:
    """In place of `Plan.launch`. Descriptors and vectors behind the first argument are nobody's output (weights)."""
    weights = {id(one.base) for one in arguments[1:] if hasattr(one, "base")}
    for program in itertools.product(*map(range, plan.grid)):
        machine = Machine(program, plan.options["num_warps"], weights)
        values = []
        for one in arguments:
            if hasattr(one, "block_shape"):
                one = SimpleNamespace(
                    base=one.base, block_shape=one.block_shape, layout=one.layout, dtype=Element(one.base.dtype)
                )
            elif isinstance(one, torch.Tensor):
                one = Pointer(machine, one)
            values.append(one)
        run = types.FunctionType(kernel.fn.__code__, machine.namespace() | {"__builtins__": __builtins__})
        run(*values, **plan.constants)
        assert not machine.products, "a product was not waited for"
        assert not any(barrier.under_way for barrier in machine.barriers), "what was fetched was not waited for"
