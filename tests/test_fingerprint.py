"""Whether a model is still the one that it was: what its modules and their places tell."""

import pytest
import torch
from torch import nn

from radar.target.fingerprint import fingerprint


def swap(whole, first, second):
    whole[0], whole[1] = whole[1], whole[0]


def out_of_its_parent(whole, first, second):
    """In front of it, where a walk that goes backwards meets it at the same time."""
    parent = whole[4]
    inner = parent.inner
    del parent.inner
    whole.insert(4, inner)


@pytest.mark.parametrize(
    "change",
    [
        swap,
        out_of_its_parent,
        lambda whole, first, second: whole.__delitem__(0),
        lambda whole, first, second: whole.append(whole[1]),
        lambda whole, first, second: whole.__setitem__(1, nn.Linear(2, 2)),
        lambda whole, first, second: delattr(first, "own"),
        lambda whole, first, second: setattr(second, "own", None),
        lambda whole, first, second: setattr(second, "more", first.own),
        lambda whole, first, second: first.own.register_forward_hook(lambda *_: None),
    ],
)
def test_modules_that_stand_elsewhere_are_another_model(change):
    """Also those of one module in several places."""
    first, second, shared = nn.Module(), nn.Module(), nn.Linear(2, 2)
    first.own = second.own = shared
    third = nn.Module()
    third.inner = nn.Linear(2, 2)
    whole = nn.ModuleList([shared, nn.Linear(2, 2), first, second, third, shared])
    before = fingerprint(whole)
    assert fingerprint(whole) == before
    change(whole, first, second)
    assert fingerprint(whole) != before


class Wrapped(torch.Tensor):
    """What quantised weights are: a tensor without a storage of its own, around others."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


def test_what_a_wrapper_holds_is_looked_at():
    whole = nn.Module()
    whole.register_buffer("weight", Wrapped(torch.zeros(3)))
    before = fingerprint(whole)
    assert fingerprint(whole) == before
    whole.weight.inner.add_(1)
    written = fingerprint(whole)
    assert written.layout == before.layout
    assert written.values != before.values
    whole.weight.inner = torch.ones(3)
    assert fingerprint(whole).layout != before.layout
