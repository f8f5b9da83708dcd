"""A call with its arguments as a request: the one way that text and ids take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import MaxLengthCriteria, StoppingCriteriaList

from radar.config import check_int
from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS
from radar.generation.options import check_options, configured, with_config, with_sampling
from radar.generation.padding import paddings
from radar.generation.prepare import Prepared, is_stock, prepare
from radar.generation.prompt import EncodedPrompt
from radar.generation.request import Context, Request, request_of, room_for
from radar.generation.stops import StopStrings

__all__ = ["check_end_tokens", "make_request", "prepare_requests"]

_LIMITS = ("max_new_tokens", "max_length")
_NO_RESULT = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")


def make_request(prompt: EncodedPrompt, options: Mapping[str, Any], context: Context) -> Request:
    """The request of `generate`, `stream` and `rounds`.

    Args:
        prompt: encoded; `tools` and `chat_template_kwargs` are in it already.
        options: `GenerateOptions`.
        context: of the decoder.

    Raises:
        UsageError: for an option that is unknown, contradicts another, is out of its range or cannot be honoured.
    """
    arguments = with_config(with_sampling(check_options(options), context.model))
    arguments |= dict.fromkeys(_NO_RESULT, False)
    for name in ("tools", "chat_template_kwargs"):
        arguments.pop(name, None)
    reuse, watched = arguments.pop("reuse_prefix", prompt.is_chat), arguments.pop("logprobs", None)
    if watched is not None and (type(watched) is not int or not 0 <= watched <= context.vocab_size):
        raise UsageError(
            f"logprobs is how many of the likeliest tokens to tell, an integer from 0 to {context.vocab_size}, got "
            f"{watched!r:.80}"
        )
    length = len(prompt.ids)
    room = room_for(length, context)
    if "max_new_tokens" in arguments:
        arguments["max_length"] = None  # as in transformers
    elif "max_length" in arguments:
        arguments["max_new_tokens"] = None  # an argument comes before the config
    elif all(configured(context.model, name) is None for name in _LIMITS):
        arguments["max_new_tokens"] = room
    check_end_tokens(arguments.get("eos_token_id"), context.vocab_size)
    arguments.setdefault("eos_token_id", sorted(context.end_token_ids))
    ids = torch.tensor([prompt.ids])
    arguments["attention_mask"] = torch.ones_like(ids)  # a prompt has no padding, whatever its ids are
    number = arguments.get("num_return_sequences", configured(context.model, "num_return_sequences"))
    if number not in (None, 1):
        raise UsageError(
            f"RADAR cannot honour num_return_sequences={number!r} here, one prompt has one text: give the prompt "
            "several times, or call generate_ids"
        )
    _, (request,) = prepare_requests(ids, arguments, context, reuse_prefix=reuse)
    return replace(request, logprobs=watched)


def prepare_requests(
    input_ids: Tensor | None, arguments: Mapping[str, Any], context: Context, *, reuse_prefix: bool = False
) -> tuple[Prepared, list[Request]]:
    """The requests of a call of transformers' `generate`, one a row of its result.

    Where there are several rows, or padding, each is prepared as a call of its own, without the padding. All of it is
    on the host, since whatever asks a device waits for the rounds of other texts; processors on the host work with the
    device's scores and are made there.

    Args:
        input_ids: [B, P] on the CPU; None: `generate` starts from the config's bos_token_id.
        arguments: of `generate`, and `seed` and `logit_bias`.
        context: of the decoder.
        reuse_prefix: go on from what the caches hold.

    Raises:
        UsageError: for what transformers refuses, or what cannot be honoured, by its name.
    """
    if not isinstance(reuse_prefix, bool):
        raise UsageError(f"reuse_prefix must be True or False, got {reuse_prefix!r:.80}")
    device, seeds = context.model.device, []
    if input_ids is None or device.type == "cpu":
        return _made(input_ids, arguments, context, reuse_prefix)
    if is_stock(context.model):
        whole, requests = _made(input_ids, _on(torch.device("cpu"), arguments), context, reuse_prefix)
        if not any(request.processing for request in requests):
            return whole, requests
        seeds = [request.sampling.seed for request in requests]  # drawn once
        arguments = {**arguments, "seed": 0}
    whole, requests = _made(input_ids.to(device), _on(device, arguments), context, reuse_prefix)
    for row, seed in enumerate(seeds):
        requests[row] = replace(requests[row], sampling=replace(requests[row].sampling, seed=seed))
    return whole, requests


def _on(device: torch.device, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _made(
    input_ids: Tensor | None, arguments: Mapping[str, Any], context: Context, reuse_prefix: bool
) -> tuple[Prepared, list[Request]]:
    whole, criteria, seed, asked = _prepare(input_ids, arguments, context)
    left = paddings(whole)
    if len(left) == 1 and not left[0]:
        request = request_of(whole, context, seed=seed, criteria=criteria, clip=not asked, reuse_prefix=reuse_prefix)
        return whole, [request]
    requests = []
    for row, padding in enumerate(left):
        ids = whole.input_ids[row : row + 1, padding:]
        own = dict(arguments) | {"num_return_sequences": 1, "attention_mask": torch.ones_like(ids)}
        if seed is not None:
            own["seed"] = seed + row
        if padding:
            _without(padding, own, ids.shape[1], context, asked=asked)
        if (allowed := own.get("prefix_allowed_tokens_fn")) is not None:
            own["prefix_allowed_tokens_fn"] = partial(_of_row, row, allowed)
        prepared, criteria, own_seed, _ = _prepare(ids, own, context)
        requests.append(
            request_of(prepared, context, seed=own_seed, criteria=criteria, clip=not asked, reuse_prefix=reuse_prefix)
        )
    return whole, requests


def _of_row(row: int, allowed: Callable[[int, Tensor], Any], _: int, ids: Tensor) -> Any:
    """A `prefix_allowed_tokens_fn`, told which row of the call it is asked for."""
    return allowed(row, ids)


def _without(padding: int, own: dict[str, Any], length: int, context: Context, *, asked: bool) -> None:
    """Limits that count a row's padding, as of a row without it."""
    shortest = own.get("min_length", configured(context.model, "min_length"))
    if shortest:
        own["min_length"] = max(0, shortest - padding)
    if own.get("max_length") is not None:
        own["max_length"] -= padding
    if own.get("stopping_criteria"):
        own["stopping_criteria"] = StoppingCriteriaList(
            MaxLengthCriteria(one.max_length - padding) if type(one) is MaxLengthCriteria else one
            for one in own["stopping_criteria"]
        )
    most = configured(context.model, "max_length")
    if not asked and most is not None and configured(context.model, "max_new_tokens") is None:  # the config's own
        own["max_new_tokens"] = max(1, min(most - padding - length, room_for(length, context)))


def _prepare(
    input_ids: Tensor | None, arguments: Mapping[str, Any], context: Context
) -> tuple[Prepared, tuple[StopStrings, ...], int | None, bool]:
    """What transformers makes of the call, what ends a text beside, the seed, and whether the caller set a limit."""
    given = {name: _number(name, value) for name, value in arguments.items()}
    seed = given.pop("seed", None)
    if seed is not None:
        check_int("generate", "seed", seed, 0, 2**63 - 1)
    if context.assigned_ends is not None:
        given.setdefault("eos_token_id", sorted(context.assigned_ends))
    ends = given.get("eos_token_id")
    if isinstance(ends, Sized) and getattr(ends, "ndim", 1) != 0 and len(ends) == 0:
        given["eos_token_id"] = None
    length = 1 if input_ids is None else input_ids.shape[1]
    asked = _asks_for_limit(given, length)
    room = room_for(length, context)
    if not asked:
        _fit(given, context.model, length, room)
    _add_bias(given, context.model)
    tokenizer = given.pop("tokenizer", None)
    strings = given.get("stop_strings")
    strings = configured(context.model, "stop_strings") if strings is None else strings
    criteria: tuple[StopStrings, ...] = ()
    if strings is not None:  # transformers does not hand its tokenizer on
        criteria = (StopStrings(context.tokenizer if tokenizer is None else tokenizer, strings),)
        given["stop_strings"] = None
    for name, known in ARGUMENTS.items():  # how a model's own config would run it is not how it is run here
        if known.is_free and known.values and name not in given and configured(context.model, name) is not None:
            given[name] = known.values[-1]
    return prepare(context.model, input_ids, given), criteria, seed, asked


def _number(name: str, value: Any) -> Any:
    """transformers wants floats that are floats; elsewhere an integer or a number of NumPy's is as good."""
    if name in ("temperature", "repetition_penalty") and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value


def _asks_for_limit(given: Mapping[str, Any], length: int) -> bool:
    """Whether the caller set a limit, which then has to fit; checked."""
    for name in _LIMITS:
        value = given.get(name)
        if value is not None:
            least = 1 if name == "max_new_tokens" else length + 1
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
                expected = "positive integer" if least == 1 else f"integer above the prompt's {length} tokens"
                raise UsageError(f"{name} must be a{'n' * (least > 1)} {expected}, got {value!r:.80}")
    criteria = given.get("stopping_criteria") or ()
    return any(given.get(name) is not None for name in _LIMITS) or any(
        type(item) is MaxLengthCriteria for item in criteria
    )


def _fit(given: dict[str, Any], model: Any, length: int, room: int) -> None:
    """A limit of the model's config that the cache does not hold becomes what it holds, and processors know of it."""
    most, total = (configured(model, name) for name in _LIMITS)
    if most is None:
        most = 20 if total is None else total - length
    if most > room:
        given["max_new_tokens"], given["max_length"] = room, None


def check_end_tokens(ids: Any, vocab_size: int) -> None:
    """Raise UsageError for end tokens that are none; None is none."""
    if ids is None:
        return
    for token in ids.flatten().tolist() if isinstance(ids, Tensor) else ids if isinstance(ids, Iterable) else (ids,):
        if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= int(token) < vocab_size:
            raise UsageError(f"eos_token_id must be a token id or several, 0 to {vocab_size - 1}, got {token!r:.80}")


def _add_bias(given: dict[str, Any], model: Any) -> None:
    """`logit_bias` is transformers' `sequence_bias` of single tokens."""
    bias = given.pop("logit_bias", None)
    if not bias:
        return
    sequences = given.get("sequence_bias")
    sequences = configured(model, "sequence_bias") if sequences is None else sequences
    if isinstance(sequences, list):
        sequences = {tuple(ids): value for ids, value in sequences}
    merged = dict(sequences or {})
    for token, value in bias.items():
        merged[(token,)] = merged.get((token,), 0.0) + float(value)
    given["sequence_bias"] = merged
