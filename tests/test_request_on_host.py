"""A request is made on the host: nothing that would wait for the rounds of other texts runs on the model's device."""

import warnings
from functools import partial

import pytest
import torch
from decoders import WordTokenizer
from fakes import VOCAB, tiny_target
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import radar.generation.call
import radar.generation.prepare as prepare_module
from radar import SamplingParams
from radar.errors import UsageError
from radar.generation.call import make_request
from radar.generation.hf import call_of_ids
from radar.generation.prepare import prepare
from radar.generation.prompt import EncodedPrompt
from radar.generation.request import Context
from radar.metrics import Round

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
@pytest.mark.parametrize("warns", [True, None])
def test_nothing_runs_on_the_models_device(options, warns, monkeypatch):
    if warns:  # as older transformers
        monkeypatch.setattr(prepare_module, "_WARNS", True)
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


def test_several_rows_with_processors_keep_their_own_noise(monkeypatch):
    made, seen, there = radar.generation.call._made, [], context_on("meta")
    arguments = {"min_new_tokens": 4, "do_sample": True, "max_new_tokens": 9, "attention_mask": torch.ones(2, 4).long()}

    def on_cpu(input_ids, arguments, context, reuse):
        is_second = input_ids.device.type == "meta"
        ids, mask = torch.tensor([PROMPT, PROMPT[::-1]]), torch.ones(2, 4).long()
        seen.append(made(ids, arguments | {"attention_mask": mask}, context_on("cpu") if is_second else context, reuse))
        return seen[-1]

    monkeypatch.setattr(radar.generation.call, "_made", on_cpu)
    call = call_of_ids(torch.tensor([PROMPT, PROMPT[::-1]]), arguments, there)
    (_, first), (whole, second) = seen
    assert [request.sampling.seed for request in call.requests] == [request.sampling.seed for request in first]
    assert len({request.sampling.seed for request in first}) == 2
    assert [request.processing for request in call.requests] == [request.processing for request in second]
    assert call.prepared is whole


def test_what_the_caller_left_on_a_device_is_read_on_the_host():
    moved = []

    class Elsewhere(torch.Tensor):
        def to(self, device):
            moved.append(device.type)
            return self.as_subclass(torch.Tensor)

    mask = torch.ones(1, 4).long().as_subclass(Elsewhere)
    call_of_ids(torch.tensor([PROMPT]), {"attention_mask": mask, "max_new_tokens": 3}, context_on("meta"))
    assert moved == ["cpu"]


def test_a_result_is_on_the_models_device():
    for device in ("cpu", "meta"):
        call = call_of_ids(torch.tensor([PROMPT]), {"max_new_tokens": 3}, context_on(device))
        found = call.result([[Round([4, 2, 1])]], "eager", 1.0)
        assert found.device.type == device
        assert found.shape == (1, 7)


@pytest.mark.parametrize("place", ["class", "instance"])
def test_a_generate_of_the_models_own_gets_ids_on_its_device(place, monkeypatch):
    """It may run the model."""
    context, devices = context_on("meta"), []
    stock = type(context.model).generate

    def generate(self, inputs, **arguments):
        devices.append(inputs.device.type)
        raise ValueError("seen")

    if place == "class":
        context.model.__class__ = type("Own", (type(context.model),), {"generate": generate})
    else:
        context.model.generate = partial(generate, context.model)
    with pytest.raises(UsageError, match="seen"):
        make_request(EncodedPrompt(PROMPT, False), {}, context)
    assert devices == ["meta"]
    assert stock is type(context_on("cpu").model).generate


def test_the_models_twin_is_the_model(monkeypatch):
    """Of its own class as far as anybody asks, with its state, and nobody is told of another class."""
    monkeypatch.setattr(prepare_module, "_WARNS", True)
    model = tiny_target().to("meta")
    seen, told = {}, []

    def made(input_ids, scores):
        return scores

    class Asked(type(model)):
        def __init_subclass__(cls, *, tag):
            told.append(tag)

        def _prepare_generation_config(self, *args, **kwargs):
            seen.update(kind=isinstance(self, type(model)), name=type(self).__name__, device=self.device.type)
            seen["same"] = self.model is model.model
            return super()._prepare_generation_config(*args, **kwargs)

    model.__class__ = Asked
    for _ in range(2):
        prepared = prepare(model, torch.tensor([PROMPT]), {"max_new_tokens": 3, "logits_processor": [made]})
    assert prepared.processors == (made,)
    assert seen == {"kind": True, "name": "Asked", "device": "cpu", "same": True}
    assert model.device.type == "meta"
    assert told == []
    assert len(Asked.__subclasses__()) == 1  # not one a request
