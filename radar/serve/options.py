"""A request's fields as the options of `decoder.rounds`."""

from __future__ import annotations

import secrets
from typing import Any

from radar.serve.errors import too_long
from radar.serve.models import ServedModel
from radar.serve.openai import TextRequest
from radar.serve.settings import Limits
from radar.serve.texts import ServedText

__all__ = ["open_texts", "stops_of"]

SEEDS = 2**63
_FILTERS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}  # as they do nothing


def stops_of(body: TextRequest) -> list[str]:
    """Its stop strings."""
    return [body.stop] if isinstance(body.stop, str) else list(body.stop or [])


def open_texts(
    model: ServedModel,
    prompts: list[list[int]],
    body: TextRequest,
    limits: Limits,
    *,
    max_tokens: int | None,
    default: int | None,
    logprobs: int | None,
    is_chat: bool,
) -> list[ServedText]:
    """Ask for the texts of a request: n of each prompt, in order. Takes milliseconds; not for an event loop.

    Args:
        prompts: token ids.
        max_tokens: of each text, which must fit; None: `default`, or what fits of it.
        default: tokens of a text that does not say; None: what fits.
        logprobs: so many of the likeliest tokens; None: no log-probabilities.
        is_chat: go on from what the caches hold of the prompt.

    Raises:
        ApiError: 400 for a prompt or limit that does not fit.
        UsageError: for what the decoder does not take.
    """
    decoder, count = model.decoder, body.n or 1
    if limits.max_tokens is not None:
        max_tokens = None if max_tokens is None else min(max_tokens, limits.max_tokens)
        default = min(default or limits.max_tokens, limits.max_tokens)
    for prompt in prompts:
        room = decoder.max_length - len(prompt)
        if room < 1 or (max_tokens is not None and max_tokens > room):
            name = "messages" if is_chat else "prompt"
            raise too_long(len(prompt), max_tokens, decoder.max_length, name)
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed
    options = _choice(body, decoder)
    texts: list[ServedText] = []
    try:
        for number, prompt in enumerate(one for one in prompts for _ in range(count)):
            own = options | {"seed": (seed + number) % SEEDS, "reuse_prefix": is_chat, "logprobs": logprobs}
            room, most = decoder.max_length - len(prompt), max_tokens or default
            if most is not None:
                room = own["max_new_tokens"] = min(most, room)
            if body.min_tokens is not None:
                own["min_new_tokens"] = min(body.min_tokens, room)
            texts.append(ServedText(model, decoder.rounds(prompt, **own), stops_of(body)))
    except BaseException:
        for text in texts:
            text.close()
        raise
    return texts


def _choice(body: TextRequest, decoder: Any) -> dict[str, Any]:
    """How tokens are chosen. Clients send filters with greedy decoding too, where they mean nothing."""
    config = getattr(decoder.model, "generation_config", None)
    samples = bool(getattr(config, "do_sample", False)) if body.temperature is None else body.temperature > 0
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": {int(token): bias for token, bias in (body.logit_bias or {}).items()} or None,
    }
    for name, nothing in _FILTERS.items():
        value = getattr(body, name)
        if samples or (body.temperature is None and value != nothing):  # the decoder says what is missing
            given[name] = value
    return {name: value for name, value in given.items() if value is not None}
