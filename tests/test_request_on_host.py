"""A request is made on the host: nothing that would wait for the rounds of other texts runs on the model's device."""

import warnings

import pytest
import torch
from decoders import WordTokenizer
from fakes import VOCAB, tiny_target
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import radar.generation.call
from radar import SamplingParams
from radar.generation.call import make_request
from radar.generation.hf import call_of_ids
from radar.generation.prepare import prepare
from radar.generation.prompt import EncodedPrompt
from radar.generation.request import Context

PROMPT = [5, 3, 2, 8]


class NotOn(TorchDispatchMode):
    """Raises where an operation works on a device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, found)):
            where = leaf.device if isinstance(leaf, torch.Tensor) else leaf
            assert not (isinstance(where, torch.device) and where.type == self.device), f"{func} on {where}"
        return found


def context_on(device):
    model = tiny_target(eos_token_id=[3, 7], pad_token_id=0).to(device)
    return Context(model, WordTokenizer(), 100, VOCAB, frozenset({3, 7}))


def told(request):
    """What two requests have to have in common."""
    return request.input_ids, request.limit, request.sampling, request.end_token_ids, len(request.criteria)


def test_the_mode_sees_a_device():
    for work in (lambda: torch.ones(2, device="meta"), lambda: torch.ones(2).to("meta")):
        with pytest.raises(AssertionError, match="on meta"), NotOn("meta"):
            work()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": 5},
        {"sampling": SamplingParams(temperature=0.7, top_p=0.9, top_k=4, min_p=0.1, seed=4)},
        {"do_sample": True, "temperature": 0.8, "repetition_penalty": 1.2, "seed": 7, "logit_bias": {4: 1.0}},
        {"stop_strings": ["w4"], "eos_token_id": [5]},
        {"bad_words_ids": [[4]], "suppress_tokens": [6]},
        {"eos_token_id": torch.tensor([4])},
    ],
    ids=lambda options: ",".join(options) or "none",
)
def test_nothing_runs_on_the_models_device(options):
    expected = make_request(EncodedPrompt(PROMPT, False), options, context_on("cpu"))
    context = context_on("meta")
    with warnings.catch_warnings(), NotOn("meta"):
        warnings.simplefilter("error")  # transformers would warn of ids that are elsewhere than the model
        request = make_request(EncodedPrompt(PROMPT, False), options, context)
    assert told(request) == told(expected)
    assert request.processing is None


def test_rows_of_ids_are_read_on_the_host():
    ids = torch.tensor([[0, 0, 5, 3], [4, 2, 8, 1]])
    arguments = {"attention_mask": (ids != 0).long(), "do_sample": True, "seed": 3, "max_new_tokens": 6}
    context = context_on("meta")
    with NotOn("meta"):
        found = call_of_ids(ids, arguments, context).requests
    assert list(map(told, found)) == list(map(told, call_of_ids(ids, arguments, context_on("cpu")).requests))


def test_processors_on_the_host_are_made_where_the_scores_are(monkeypatch):
    """In a second pass, with the noise of the first."""
    made, passes, here, there = radar.generation.call._made, [], context_on("cpu"), context_on("meta")

    def seen(input_ids, arguments, context, reuse):
        devices = {value.device.type for value in (input_ids, *arguments.values()) if isinstance(value, torch.Tensor)}
        passes.append((devices, arguments.get("seed")))
        if devices == {"meta"}:  # whose values nobody can read
            ids = torch.tensor([PROMPT])
            return made(ids, arguments | {"attention_mask": torch.ones_like(ids)}, here, reuse)
        return made(input_ids, arguments, context, reuse)

    monkeypatch.setattr(radar.generation.call, "_made", seen)
    torch.manual_seed(5)
    expected = int(torch.randint(2**62, ()))
    torch.manual_seed(5)
    options = {"min_new_tokens": 4, "do_sample": True, "max_new_tokens": 9}
    request = make_request(EncodedPrompt(PROMPT, False), options, there)
    after = torch.rand(())
    assert passes == [({"cpu"}, None), ({"meta"}, 0)]
    assert request.processing is not None
    assert request.sampling.seed == expected
    torch.manual_seed(5)
    torch.randint(2**62, ())
    assert torch.equal(after, torch.rand(()))  # one draw, as before


def test_the_models_twin_is_the_model():
    """Of its own class as far as anybody asks, and with its state."""
    model = tiny_target().to("meta")
    seen = {}

    def made(input_ids, scores):
        return scores

    class Asked(type(model)):
        def _prepare_generation_config(self, *args, **kwargs):
            seen.update(kind=isinstance(self, type(model)), name=type(self).__name__, device=self.device.type)
            seen["same"] = self.model is model.model
            return super()._prepare_generation_config(*args, **kwargs)

    model.__class__ = Asked
    prepared = prepare(model, torch.tensor([PROMPT]), {"max_new_tokens": 3, "logits_processor": [made]})
    assert prepared.processors == (made,)
    assert seen == {"kind": True, "name": "Asked", "device": "cpu", "same": True}
    assert model.device.type == "meta"
