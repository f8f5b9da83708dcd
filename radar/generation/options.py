"""The arguments of `generate`, `stream` and `rounds`, said in transformers' words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor
from transformers import GenerationConfig

from radar.config import SamplingParams
from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS, CALL_ARGUMENTS, TAKEN_BY_TEXT, check_argument, unknown_argument
from radar.generation.prepare import CONFIG_NAMES
from radar.generation.processing import LogitsProcessor
from radar.generation.stops import StopCriterion

__all__ = ["GenerateOptions", "check_options", "configured", "with_config", "with_sampling"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "seed")
_FILTERS = ("top_p", "top_k", "min_p")  # change nothing where the most likely token is taken


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Decoder.generate`, `stream` and `rounds`; None is the same as leaving one out.

    What each means stands in the table of `radar.generation.arguments`, and in README.md beside it.
    """

    # length and end
    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    max_time: float | None
    eos_token_id: int | Collection[int] | None
    pad_token_id: int | None
    bos_token_id: int | None
    stop_strings: str | Sequence[str] | None
    stopping_criteria: Sequence[StopCriterion] | None
    # how a token is chosen
    sampling: SamplingParams | None
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    suppress_tokens: Sequence[int] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    sequence_bias: Any
    seed: int | None
    # on the host
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    top_h: float | None
    renormalize_logits: bool | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    encoder_repetition_penalty: float | None
    exponential_decay_length_penalty: tuple[int, float] | None
    remove_invalid_values: bool | None
    watermarking_config: Any
    logits_processor: Sequence[LogitsProcessor] | None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None
    # the rest
    generation_config: Any
    tokenizer: Any
    tools: Sequence[Any] | None
    chat_template_kwargs: Mapping[str, Any] | None
    reuse_prefix: bool | None
    logprobs: int | None


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given. Raises UsageError for what is unknown or cannot be honoured, by its name."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in options:
        known = (ARGUMENTS | CALL_ARGUMENTS).get(name)
        if known is None:
            raise unknown_argument(name, TAKEN_BY_TEXT)
        if known.values is None and name not in TAKEN_BY_TEXT:
            raise UsageError(f"{name}= is an argument of {known.only or 'a config'}: {known.about}")
        check_argument(name, options[name], known)
    if "max_new_tokens" in given and "max_length" in given:
        raise UsageError("pass max_new_tokens= or max_length=, not both")
    for name in ("stopping_criteria", "logits_processor"):
        if name in given:
            given[name] = _callables(name, given[name])
    return given


def with_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's own `generation_config` as the arguments that it stands for, behind those that were given."""
    given = dict(given)
    config = given.pop("generation_config", None)
    if config is None:
        return given
    if not isinstance(config, GenerationConfig):
        raise UsageError(f"generation_config must be a GenerationConfig, got {config!r:.80}")
    names = sorted(CONFIG_NAMES - {"transformers_version"})
    return {name: value for name in names if (value := getattr(config, name, None)) is not None} | given


def configured(model: Any, name: str) -> Any:
    """What the model's generation config says; None: nothing."""
    return getattr(getattr(model, "generation_config", None), name, None)


def with_sampling(given: dict[str, Any], model: Any) -> dict[str, Any]:
    """Say in transformers' words how tokens are chosen: a temperature above 0 samples, 0 is greedy.

    Where no argument says whether to sample, the call's own config says, else the model's.

    Raises UsageError for values out of range, or what contradicts another or has no effect.
    """
    loose = {name: given[name] for name in _SAMPLING if name in given}
    do_sample = given.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise UsageError(f"do_sample must be True or False, got {do_sample!r}")
    if "sampling" in given:
        if loose or do_sample is not None:
            raise UsageError(f"pass sampling= or {next(iter(loose), 'do_sample')}=, not both")
        if not isinstance(params := given["sampling"], SamplingParams):
            raise UsageError(f"sampling must be SamplingParams, got {params!r:.80}")
        given = {name: value for name, value in given.items() if name != "sampling"}
        given |= {name: getattr(params, name) for name in _SAMPLING}
        return given | _chosen_by(params.temperature)
    if not isinstance(loose.get("logit_bias", {}), Mapping):
        raise UsageError(f"logit_bias must map token ids to numbers, got {loose['logit_bias']!r:.80}")
    SamplingParams(**loose)  # the ranges
    if "temperature" in loose:
        if do_sample and loose["temperature"] == 0:
            raise UsageError("do_sample=True contradicts temperature=0, which is greedy: leave one of them out")
        if do_sample is False and loose["temperature"] != 0:
            raise UsageError(f"do_sample=False contradicts temperature={loose['temperature']!r}: leave one of them out")
        given = given | _chosen_by(loose["temperature"])
    filters = [name for name in _FILTERS if name in loose]
    config = getattr(given.get("generation_config"), "do_sample", None)
    config = configured(model, "do_sample") if config is None else config
    if filters and not given.get("do_sample", config):
        raise UsageError(f"{filters[0]} has no effect on greedy decoding: pass temperature= or do_sample=True as well")
    return given


def _chosen_by(temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False, "temperature": None}


def _callables(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise UsageError(f"{name} must be a list of callables, got {values!r:.80}")
    found = list(values)
    wrong = [value for value in found if not callable(value)]
    if wrong:
        raise UsageError(f"{name} must hold callables, got {wrong[0]!r:.80}")
    return found
