"""A text enters a row, and leaves it, while a round is under way: nothing of it may wait for the device.

A number that is assigned to a place of a tensor is copied from the host's memory, and so is one that `torch.tensor`
makes on a device: both wait for all that has been launched. Most entries and ends of texts did so once.
"""

import pytest
import torch
from fakes import DEVICE
from test_no_host_sync import NoHostReads
from test_rows_engine import make_batch, sequence_of

from radar import FixedDepth, SamplingParams
from radar.engine.rows import RowsEngine
from radar.engine.sampler import Sampler
from radar.engine.upload import upload
from radar.generation.request import Request
from radar.generation.stops import TextEnd


class NoHostWaits(NoHostReads):
    """Raises for reads, and where a number of the host's becomes a part of a tensor by a copy."""

    def __init__(self):
        super().__init__()
        self.lifted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = name == "index_put_"  # by a list, which is sent
        waits |= name == "copy_" and any(args[1] is one for one in self.lifted)
        if name == "_to_copy" and args[0].device.type == "cpu":
            waits |= torch.device(kwargs.get("device") or "cpu").type != "cpu" and not args[0].is_pinned()
        if waits:
            raise AssertionError("a copy from the host's memory waits for the device")
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if name == "lift_fresh":
            self.lifted.append(found)
        return found


def test_the_mode_catches_what_waits():
    x = torch.zeros(3, device=DEVICE)
    with torch.inference_mode(), NoHostWaits():
        with pytest.raises(AssertionError, match="waits"):
            x[1] = 2.0
        with pytest.raises(AssertionError, match="waits"):
            x[[0, 2]] = x[:2]
        x[1].fill_(2.0)
        x[:2] = 3.0  # a fill
        sent = upload([4, 5], DEVICE)  # no copy of its own on a CPU, from pinned memory elsewhere
    assert (x.tolist(), sent.tolist()) == ([3, 3, 0], [4, 5])


@pytest.mark.parametrize("policy", [FixedDepth(3), None], ids=["rounds", "plain"])
@torch.inference_mode()
def test_texts_enter_and_leave_rows_without_a_wait(policy, monkeypatch):
    met = []

    def watched(name):
        own = getattr(RowsEngine, name)

        def run(self, *args):
            met.append(name)
            with NoHostWaits():
                return own(self, *args)

        monkeypatch.setattr(RowsEngine, name, run)

    watched("_enter")
    watched("_leave")
    batch = make_batch(2, policy)
    samplings = [SamplingParams(), SamplingParams(temperature=1.0, seed=3, logit_bias={3: 2.0, 5: -1.0})] * 2
    texts = [
        sequence_of(Request([1 + n, 2, 3], 5 + 3 * n, sampling, frozenset())) for n, sampling in enumerate(samplings)
    ]
    for text in texts:
        batch.add(text)
    while batch.has_work:
        batch.step()
    assert [len(text.ids) - 3 for text in texts] == [5, 8, 11, 14]
    assert met.count("_enter") == met.count("_leave") == 4


def test_a_criterion_of_the_hosts_is_asked_without_a_wait():
    """What it is given is on the device; one that looks at values there waits by itself."""
    seen = []
    end = TextEnd([1, 2], 9, frozenset(), [lambda ids, scores: seen.append(ids) or ids.shape[1] == 5], DEVICE)
    with torch.inference_mode(), NoHostWaits():
        assert end.reason([1, 2, 7], None) is None
        assert end.reason([1, 2, 7, 8], None) is None
        assert end.reason([1, 2, 7, 8, 9], None) == "stop"
    assert [one.tolist() for one in seen] == [[[1, 2, 7]], [[1, 2, 7, 8]], [[1, 2, 7, 8, 9]]]


def test_a_bias_is_that_of_its_tokens():
    sampler = Sampler(2, 17, DEVICE)
    sampler.set(SamplingParams(logit_bias={3: 2.0, 5: -1.0}))
    expected = torch.zeros(2, 17)
    expected[:, 3], expected[:, 5] = 2.0, -1.0
    assert torch.equal(sampler.state.logit_bias.cpu(), expected)
    sampler.set(SamplingParams(logit_bias={0: 0.5}))
    assert sampler.state.logit_bias.cpu().nonzero().tolist() == [[0, 0], [1, 0]]
