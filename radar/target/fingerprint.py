"""Whether a model is still the one that it was: its modules, its storages, and the values in them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from radar.target.adapters import adapter_state

__all__ = ["Fingerprint", "fingerprint", "parts_of"]


class Fingerprint(NamedTuple):
    """Equal while nothing has changed.

    Attributes:
        layout: modules, hooks, forwards set on instances, active adapters, and where weights lie: what a captured
            graph and a fused product stand on.
        values: counts of what was written into each weight in place, which `.data` hides from everybody.
    """

    layout: tuple[Any, ...]
    values: tuple[int, ...]


_PLAIN = (Tensor, nn.Parameter)


def fingerprint(*modules: nn.Module) -> Fingerprint:
    """Of modules that nobody runs at the moment; reads no weight."""
    layout: list[Any] = []
    values: list[int] = []
    met, left = set(), list(modules)
    while left:  # not by `nn.Module.modules`, which is slower: it is asked between rounds
        module = left.pop()
        layout.append(id(module))
        if module in met:
            continue
        met.add(module)
        state = module.__dict__
        if "forward" in state:
            layout.append(id(state["forward"]))
        for hooks in (state["_forward_pre_hooks"], state["_forward_hooks"]):
            if hooks:
                layout.extend(hooks)  # their keys: no two hooks of a process have one
        for tensors in (state["_parameters"], state["_buffers"]):
            for tensor in tensors.values() if tensors else ():
                for part in (tensor,) if type(tensor) in _PLAIN else () if tensor is None else parts_of(tensor):
                    layout += (id(part), _place(part))
                    values.append(0 if part.is_inference() else part._version)
        layout.append(adapter_state(module))
        parts = [part for part in state["_modules"].values() if part is not None]
        layout.append(len(parts))
        left += parts
    return Fingerprint(tuple(layout), tuple(values))


def parts_of(tensor: Tensor) -> list[Tensor]:
    """A tensor, or what a wrapper holds in place of a storage: the numbers and scales of quantised weights."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    return [part for name in names for part in parts_of(getattr(tensor, name))] or [tensor]


def _place(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a wrapper without a storage of its own: its identity has to do
        return 0
