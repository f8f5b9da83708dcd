"""Whether a model is still the one that it was: what its modules and their places tell."""

import pytest
from torch import nn

from radar.target.fingerprint import fingerprint


@pytest.mark.parametrize(
    "change",
    [
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
    whole = nn.ModuleList([shared, nn.Linear(2, 2), first, second, shared])
    before = fingerprint(whole)
    assert fingerprint(whole) == before
    change(whole, first, second)
    assert fingerprint(whole) != before
