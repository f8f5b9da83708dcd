"""Conditional nodes of CUDA graphs: loops whose end and choices whose way are decided on the device, while it runs.

PyTorch captures the rest; the node itself comes from the CUDA driver through cuda-bindings (an optional dependency).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["Switch", "WhileLoop", "why_no_while_nodes"]

_ADVICE = 'install it with `pip install "radar-decoding[graph]"` to have the whole round in one CUDA graph'


def why_no_while_nodes(device: torch.device) -> str | None:
    """What is missing for WHILE nodes on this device, in a sentence; None if nothing is."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, got {device}"
    try:
        driver = _driver()
    except ImportError:
        return f"cuda-bindings 13 or newer is not installed; {_ADVICE}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    error, version = driver.cuDriverGetVersion()
    if int(error) or version < 12080:  # earlier drivers hang on some conditional bodies
        return f"the CUDA driver is {version // 1000}.{version % 1000 // 10}, WHILE nodes need 12.8 or newer"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def _driver() -> Any:
    import cuda.bindings
    from cuda.bindings import driver

    if int(cuda.bindings.__version__.split(".")[0]) < 13:  # signatures differ
        raise ImportError
    return driver


def _check(result: Any) -> Any:
    """The values of a call of cuda-bindings, which returns (error, *values)."""
    error, *values = result
    if int(error):
        raise RuntimeError(f"CUDA graph: {error!s}")
    return values[0] if len(values) == 1 else values


class _Conditional:
    """A node in the graph that the current stream captures: `open`, set the condition, `capture`, and `arm` at the end.

    Bodies are captured on a stream of their own; their temporaries come from a memory pool that has to live as long as
    the graph, so keep this object.

    Args:
        device: of the graph.
        stream: on which the bodies have been warmed up.

    Attributes:
        handle: [1] int64 on the device, for `radar_kernels.graph_condition`.
    """

    KIND: str

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._driver = _driver()
        self._stream = stream
        self._pool = torch.cuda.MemPool()
        self.handle = torch.zeros(1, dtype=torch.int64, device=device)

    def open(self) -> None:
        """Make the condition, 0 until a kernel of this launch sets it, on the graph under capture."""
        driver = self._driver
        _, _, graph, _ = _check(driver.cuStreamGetCaptureInfo(torch.cuda.current_stream().cuda_stream))[:4]
        self._context = _check(driver.cuCtxGetCurrent())
        default = driver.CU_GRAPH_COND_ASSIGN_DEFAULT
        self._condition = _check(driver.cuGraphConditionalHandleCreate(graph, self._context, 0, default))

    def _capture(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Add the node behind what the current stream has captured so far."""
        driver = self._driver
        outer = torch.cuda.current_stream().cuda_stream
        _, _, graph, found = _check(driver.cuStreamGetCaptureInfo(outer))[:4]
        before = list(found)
        node = driver.CUgraphNodeParams()
        node.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
        node.conditional.handle = self._condition
        node.conditional.type = getattr(driver.CUgraphConditionalNodeType, f"CU_GRAPH_COND_TYPE_{self.KIND}")
        node.conditional.size = len(bodies)
        node.conditional.ctx = self._context
        added = _check(driver.cuGraphAddNode(graph, before or None, None, len(before), node))
        replace = driver.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
        _check(driver.cuStreamUpdateCaptureDependencies(outer, [added], None, 1, int(replace)))
        for place, body in enumerate(bodies):
            self._capture_body(node.conditional.phGraph_out[place], body)

    def _capture_body(self, graph: Any, body: Callable[[], None]) -> None:
        driver, inner = self._driver, self._stream.cuda_stream
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with torch.cuda.stream(self._stream):
            _check(driver.cuStreamBeginCaptureToGraph(inner, graph, None, None, 0, relaxed))
            try:
                with torch.cuda.use_mem_pool(self._pool):
                    body()
            finally:
                _check(driver.cuStreamEndCapture(inner))

    def arm(self) -> None:
        """After the capture: put the condition's handle where the kernels read it."""
        value = int(self._condition)
        self.handle.fill_(value - 2**64 if value >= 2**63 else value)


class WhileLoop(_Conditional):
    """A loop."""

    KIND = "WHILE"

    def capture(self, body: Callable[[], None]) -> None:
        """Add the loop.

        Args:
            body: enqueues one iteration on the current stream and ends by setting the condition. The driver allows
                kernels, copies and fills in it, nothing that allocates, waits or calls the host.
        """
        self._capture([body])


class Switch(_Conditional):
    """One of several ways on."""

    KIND = "SWITCH"

    def capture(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Add the ways, of which the condition's number is taken; what they may do is as for a loop's body."""
        self._capture(bodies)
