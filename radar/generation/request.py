"""The arguments of a generation: checked, and put into the form that decoders work with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from radar.config import GREEDY, SamplingParams
from radar.errors import UsageError
from radar.generation.processing import HostProcessing, LogitsProcessor
from radar.generation.stops import StopCriterion, StopStrings

__all__ = ["GenerateOptions", "Request", "host_chain", "make_request"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "seed")
_FILTERS = ("top_p", "top_k", "min_p")  # change nothing where the most likely token is taken


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Decoder.generate`, `stream` and `rounds`; None is the same as leaving one out.

    Attributes:
        max_new_tokens: exact limit of the output; without it and `max_length`, as many tokens as the cache holds.
        max_length: the same limit, prompt included.
        sampling: how to choose tokens; or, loose, any of its fields:
        temperature, top_p, top_k, min_p, repetition_penalty, logit_bias, seed: see `SamplingParams`.
        do_sample: True samples, at temperature 1 unless another one is given; False is greedy.
        eos_token_id: an id or several that end the text, in place of the decoder's.
        stop_strings: a string or several that end the text, which keeps the token that completed them.
        stopping_criteria: f(input_ids [1, L], scores) -> bool or bool tensor [1], asked after every token.
        logits_processor: f(input_ids [1, L], scores [1, V]) -> scores [1, V], in order, behind bias and penalty and
            before temperature and filters. On the host, outside of any graph: slower, and counted in the metrics.
        reuse_prefix: go on from what the caches hold of this prompt. The text is the same but for rounding, which
            depends on how a prompt is cut. Left out: for chat messages alone.
    """

    max_new_tokens: int | None
    max_length: int | None
    sampling: SamplingParams | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    do_sample: bool | None
    eos_token_id: int | Collection[int] | None
    stop_strings: str | Sequence[str] | None
    stopping_criteria: Sequence[StopCriterion] | None
    logits_processor: Sequence[LogitsProcessor] | None
    reuse_prefix: bool | None


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
    """

    input_ids: list[int]
    limit: int
    sampling: SamplingParams
    end_token_ids: frozenset[int]
    criteria: tuple[StopCriterion, ...] = ()
    processing: HostProcessing | None = None
    reuse_prefix: bool = False


def make_request(
    input_ids: list[int],
    options: Mapping[str, Any],
    *,
    tokenizer: Any,
    end_token_ids: frozenset[int],
    limit_of: Callable[[int, int | None], int],
    vocab_size: int,
    is_chat: bool,
) -> Request:
    """Put options in order.

    Args:
        input_ids: the prompt.
        options: `GenerateOptions`.
        tokenizer: of the decoder, or None.
        end_token_ids: of the decoder.
        limit_of: (prompt length, max_new_tokens or None) -> limit, checked.
        vocab_size: ids that the target knows.
        is_chat: whether the prompt came as messages.

    Raises:
        ValueError: for an option that is unknown, contradicts another or is out of its range.
    """
    unknown = sorted(set(options) - set(GenerateOptions.__annotations__))
    if unknown:
        raise UsageError(
            f"unknown argument {unknown[0]!r}; known: {', '.join(GenerateOptions.__annotations__)}. What else "
            "transformers' generate takes, generate_ids takes"
        )
    given = {name: value for name, value in options.items() if value is not None}
    sampling = _sampling(given)
    wrong = [token for token in sampling.logit_bias or () if token >= vocab_size]
    if wrong:
        raise UsageError(f"logit_bias names token {wrong[0]}, but the vocabulary ends at {vocab_size - 1}")
    end_token_ids = _end_tokens(given, end_token_ids)
    criteria, processors = (_callables(given, name) for name in ("stopping_criteria", "logits_processor"))
    if "stop_strings" in given:
        criteria = (*criteria, StopStrings(tokenizer, given["stop_strings"]))
    processing = None
    if processors:
        chain, sampling = host_chain(sampling)
        processing = HostProcessing((*chain, *processors))
    reuse = given.get("reuse_prefix", is_chat)
    if not isinstance(reuse, bool):
        raise UsageError(f"reuse_prefix must be True or False, got {reuse!r}")
    limit = _limit(given, len(input_ids), limit_of)
    return Request(input_ids, limit, sampling, end_token_ids, criteria, processing, reuse)


def host_chain(sampling: SamplingParams) -> tuple[list[LogitsProcessor], SamplingParams]:
    """Bias and penalty as processors, and what of the parameters comes behind them."""
    chain: list[LogitsProcessor] = []
    bias, penalty = sampling.logit_bias, sampling.repetition_penalty
    if bias:

        def add_bias(input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.clone()
            scores[:, list(bias)] += scores.new_tensor(list(bias.values()))
            return scores

        chain.append(add_bias)
    if penalty != 1:

        def penalize(input_ids: Tensor, scores: Tensor) -> Tensor:
            seen = scores.gather(1, input_ids)
            return scores.scatter(1, input_ids, torch.where(seen < 0, seen * penalty, seen / penalty))

        chain.append(penalize)
    rest = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )
    return chain, rest


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    loose = {name: given[name] for name in _SAMPLING if name in given}
    do_sample = given.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise UsageError(f"do_sample must be True or False, got {do_sample!r}")
    if "sampling" in given:
        if loose or do_sample is not None:
            raise UsageError(f"pass sampling= or {next(iter(loose), 'do_sample')}=, not both")
        if not isinstance(given["sampling"], SamplingParams):
            raise UsageError(f"sampling must be SamplingParams, got {given['sampling']!r}")
        sampling: SamplingParams = given["sampling"]
        return sampling
    if do_sample is True:
        loose.setdefault("temperature", 1.0)
        if loose["temperature"] == 0:
            raise UsageError("do_sample=True contradicts temperature=0, which is greedy: leave one of them out")
    if do_sample is False and loose.get("temperature", 0) != 0:
        raise UsageError(f"do_sample=False contradicts temperature={loose['temperature']!r}: leave one of them out")
    if not isinstance(loose.get("logit_bias", {}), Mapping):
        raise UsageError(f"logit_bias must map token ids to numbers, got {loose['logit_bias']!r}")
    filters = [name for name in _FILTERS if name in loose]
    if filters and not loose.get("temperature"):
        raise UsageError(f"{filters[0]} has no effect on greedy decoding: pass temperature= or do_sample=True as well")
    return SamplingParams(**loose) if loose else GREEDY


def _callables(given: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    values = given.get(name, ())
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise UsageError(f"{name} must be a list of callables, got {values!r}")
    values = tuple(values)
    wrong = [value for value in values if not callable(value)]
    if wrong:
        raise UsageError(f"{name} must hold callables, got {wrong[0]!r}")
    return values


def _end_tokens(given: Mapping[str, Any], default: frozenset[int]) -> frozenset[int]:
    ids = given.get("eos_token_id", default)
    ids = list(ids) if isinstance(ids, Iterable) else [ids]
    wrong = [token for token in ids if isinstance(token, bool) or not isinstance(token, int) or token < 0]
    if wrong:
        raise UsageError(f"eos_token_id must be a token id or several, got {wrong[0]!r}")
    return frozenset(ids)


def _limit(given: Mapping[str, Any], prompt_length: int, limit_of: Callable[[int, int | None], int]) -> int:
    most = given.get("max_length")
    if most is None:
        return limit_of(prompt_length, given.get("max_new_tokens"))
    if "max_new_tokens" in given:
        raise UsageError("pass max_new_tokens= or max_length=, not both")
    if isinstance(most, bool) or not isinstance(most, int) or most <= prompt_length:
        raise UsageError(f"max_length must be an integer above the prompt's {prompt_length} tokens, got {most!r}")
    return limit_of(prompt_length, most - prompt_length)
