"""A request: one generation in the form that decoders work with, from what transformers has prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria

from radar.config import SamplingParams
from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS, CALL_ARGUMENTS, check_argument, unknown_argument
from radar.generation.in_kernels import check_biases, sampling_in_kernels
from radar.generation.prepare import CONFIG_NAMES, Prepared
from radar.generation.processing import HostProcessing
from radar.generation.prompt import encode_prompt
from radar.generation.stops import StopCriterion

__all__ = ["Context", "Request", "check_vocabulary", "request_of", "room_for"]


# the mask has been read by `paddings`; the others change no text
_KNOWN_FOR_MODEL = ("attention_mask", "logits_to_keep", "use_cache", "output_attentions", "output_hidden_states")


@dataclass(frozen=True)
class Request:
    """One generation.

    Attributes:
        input_ids: the prompt, one token or more.
        limit: tokens of the output, at most.
        sampling: how to choose tokens, from processed scores if there is `processing`.
        end_token_ids: end the text.
        criteria: asked after every token.
        processing: what the host does with the scores; None: nothing, the round may be one graph.
        reuse_prefix: go on from what the caches hold.
        logprobs: of each token and of so many of the likeliest; None: not asked for.
    """

    input_ids: list[int]
    limit: int
    sampling: SamplingParams
    end_token_ids: frozenset[int]
    criteria: tuple[StopCriterion, ...] = ()
    processing: HostProcessing | None = None
    reuse_prefix: bool = False
    logprobs: int | None = None


@dataclass(frozen=True)
class Context:
    """What of a decoder a request depends on, as it is at the call.

    Attributes:
        model: transformers' model.
        tokenizer: or None.
        max_length: tokens that the cache holds, prompt and output together.
        vocab_size: ids that the target knows.
        end_token_ids: that end a text where no argument says otherwise.
        assigned_ends: those, if the decoder was given them; None: they come from the model or the tokenizer.
    """

    model: Any
    tokenizer: Any
    max_length: int
    vocab_size: int
    end_token_ids: frozenset[int]
    assigned_ends: frozenset[int] | None = None


def room_for(length: int, context: Context) -> int:
    """Tokens that fit behind a prompt of `length`. Raises UsageError if none does."""
    room = context.max_length - length
    if room < 1:
        raise UsageError(
            f"the prompt has {length} tokens and the cache holds max_length={context.max_length}, prompt and output "
            "together: shorten the prompt or make the decoder with a larger max_length"
        )
    return room


def check_vocabulary(ids: Sequence[int], vocab_size: int) -> None:
    """Raise UsageError if a text, taken earlier, holds an id that the model does not know any more."""
    if max(ids) >= vocab_size:
        raise UsageError(
            f"the prompt holds id {max(ids)}, and the vocabulary has shrunk to {vocab_size} ids since it was taken"
        )


def request_of(
    prepared: Prepared,
    context: Context,
    *,
    seed: int | None,
    criteria: Sequence[StopCriterion] = (),
    clip: bool,
    reuse_prefix: bool = False,
    padding: int = 0,
) -> Request:
    """Read what transformers has prepared, for one row.

    Args:
        prepared: by transformers.
        context: of the decoder.
        seed: of the noise; None draws one from torch's default generator, where one samples.
        criteria: beside those prepared.
        clip: whether a limit that does not fit into the cache becomes what fits, because nobody asked for it.
        reuse_prefix: go on from what the caches hold.
        padding: ids before the row's, which count in a limit of the whole length.

    Raises:
        UsageError: for what cannot be honoured, by its name.
    """
    config = prepared.config
    _check_config(config, getattr(context.model, "generation_config", None))
    ids = encode_prompt(prepared.input_ids, None, context.vocab_size).ids
    _check_for_model(prepared, len(ids))
    limits: list[int] = []
    ends: set[int] = set()
    others = list(criteria)
    for item in prepared.criteria:
        if type(item) is MaxLengthCriteria:
            limits.append(max(1, item.max_length - padding - len(ids)))
        elif type(item) is EosTokenCriteria:
            ends.update(int(token) for token in item.eos_token_id)
        else:
            others.append(item)
    room = room_for(len(ids), context)
    limit = min(limits, default=room)
    if limit > room and not clip:
        raise UsageError(
            f"max_new_tokens={limit} after {len(ids)} prompt tokens does not fit into the decoder's "
            f"max_length={context.max_length}: at most {room} fit"
        )
    do_sample = bool(config.do_sample)
    if seed is None:
        seed = int(torch.randint(2**62, ())) if do_sample else 0
    processors = prepared.processors
    check_biases(processors, context.vocab_size)
    keep = bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))
    sampling = processing = None
    if not keep:
        sampling = sampling_in_kernels(processors, do_sample=do_sample, seed=seed, vocab_size=context.vocab_size)
    if sampling is None:  # the whole chain on the host, temperature and filters included
        processing = HostProcessing(processors, keep=keep)
        sampling = SamplingParams(temperature=1.0 if do_sample else 0.0, seed=seed)
    return Request(ids, min(limit, room), sampling, frozenset(ends), tuple(others), processing, reuse_prefix)


def _check_config(config: Any, own: Any) -> None:
    """Every attribute that this transformers knows; entries of a model's own making say nothing to it either."""
    for name, value in vars(config).items():
        if name.startswith("_") or name not in CONFIG_NAMES or value is None:
            continue
        argument = ARGUMENTS.get(name)
        if argument is None:
            raise unknown_argument(name, ARGUMENTS)
        from_model = own is not None and value == getattr(own, name, None)
        if not (argument.is_free and from_model):
            check_argument(name, value, argument, " of the model's generation config" if from_model else "")


def _check_for_model(prepared: Prepared, length: int) -> None:
    """What transformers would pass to the model: nothing that would make it see another text."""
    for name, value in prepared.for_model.items():
        if value is None or name in _KNOWN_FOR_MODEL:
            continue
        if name == "position_ids":
            if value.flatten().tolist() != list(range(length)):
                check_argument(name, value, CALL_ARGUMENTS[name])
        elif name in ("cache", "past_key_values"):  # transformers makes an empty one for every generation
            if value.get_seq_length() > 0:
                check_argument(name, type(value).__name__, CALL_ARGUMENTS[name])
        elif name in CALL_ARGUMENTS:
            check_argument(name, value, CALL_ARGUMENTS[name])
        else:
            raise unknown_argument(name, ARGUMENTS | CALL_ARGUMENTS)
