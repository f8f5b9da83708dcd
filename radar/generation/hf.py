"""transformers' `generate` on a decoder: its arguments, defaults and results, or a refusal by name.

transformers itself merges the arguments with the model's generation config and builds processors and criteria; it then
calls a function instead of its own loop (`custom_generate=`). What that function gets is read here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from radar.config import SamplingParams
from radar.errors import UsageError
from radar.generation.processing import HostProcessing
from radar.generation.request import Request
from radar.generation.stops import StopCriterion, StopStrings
from radar.metrics import DecodeMetrics, summarize

__all__ = [
    "ARGUMENTS",
    "CALL_ARGUMENTS",
    "Argument",
    "RadarGenerateOutput",
    "check_argument",
    "generate_ids",
    "run_prepared",
]


class Argument(NamedTuple):
    """What becomes of one argument.

    Attributes:
        values: those that are taken; None: any that transformers takes.
        advice: what to do instead of another value.
    """

    values: tuple[Any, ...] | None = None
    advice: str = ""


_ANY = Argument()
_BEAMS = "beam search is not supported: use num_beams=1"
_OTHER_DRAFTS = "RADAR drafts with its own head: leave it out, or use model.generate without RADAR"
_OWN_CACHE = "RADAR has its own static cache: leave it out"
_STATES = "draft trees have no such states for a text: run model(sequences) on the result"


def _only(*values: Any, advice: str) -> Argument:
    return Argument((None, *values), advice)


# every attribute of a GenerationConfig
ARGUMENTS: dict[str, Argument] = {
    # the length of the text and its end
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings"), _ANY),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), _ANY),
    # in the kernels, where nothing else of transformers' processors is asked for
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"), _ANY),
    # on the host, by transformers' own processors
    **dict.fromkeys(("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "renormalize_logits"), _ANY),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), _ANY),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty"), _ANY),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), _ANY),
    **dict.fromkeys(("remove_invalid_values", "watermarking_config"), _ANY),
    # the result
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), _ANY),
    "output_attentions": _only(False, advice=_STATES),
    "output_hidden_states": _only(False, advice=_STATES),
    "num_return_sequences": _only(1, advice="one text at a time: call generate with several seeds"),
    # beams and other ways of searching
    "num_beams": _only(1, advice=_BEAMS),
    "num_beam_groups": _only(1, advice=_BEAMS),
    "diversity_penalty": _only(0.0, advice=_BEAMS),
    "length_penalty": _only(1.0, advice=_BEAMS),
    "early_stopping": _only(False, advice=_BEAMS),
    "constraints": _only(advice=_BEAMS),
    "force_words_ids": _only(advice=_BEAMS),
    "penalty_alpha": _only(0.0, advice="contrastive search is not supported: leave it out"),
    "dola_layers": _only(advice="DoLa reads layers that are not run apart: leave it out"),
    "guidance_scale": _only(1, 1.0, advice="guidance needs a second, unconditional pass a token: leave it out"),
    "low_memory": _only(False, advice="it is for contrastive search: leave it out"),
    "token_healing": _only(False, advice="heal the prompt first, with model.heal_tokens(input_ids, tokenizer)"),
    "decoder_start_token_id": _only(advice="it is for encoder-decoder models: leave it out"),
    # drafts of other kinds; their knobs may keep transformers' defaults
    "prompt_lookup_num_tokens": _only(advice=_OTHER_DRAFTS),
    "max_matching_ngram_size": _only(2, advice=_OTHER_DRAFTS),
    "assistant_early_exit": _only(advice=_OTHER_DRAFTS),
    "use_mtp": _only(False, advice=_OTHER_DRAFTS),
    "speculation_type": _only(advice=_OTHER_DRAFTS),
    "is_assistant": _only(False, advice=_OTHER_DRAFTS),
    "num_assistant_tokens": _only(20, advice=_OTHER_DRAFTS),
    "num_assistant_tokens_schedule": _only("constant", advice=_OTHER_DRAFTS),
    "assistant_confidence_threshold": _only(0.4, advice=_OTHER_DRAFTS),
    "assistant_lookbehind": _only(10, advice=_OTHER_DRAFTS),
    "target_lookbehind": _only(10, advice=_OTHER_DRAFTS),
    "assistant_ensemble_weight": _only(advice=_OTHER_DRAFTS),
    # how transformers would run the model
    "use_cache": _only(True, advice="decoding without a cache is not supported: leave it out"),
    "cache_implementation": _only("dynamic", advice=_OWN_CACHE),
    "cache_config": _only(advice=_OWN_CACHE),
    "max_cache_len": _only(advice=_OWN_CACHE),
    "prefill_chunk_size": _only(advice="prompts run in chunks anyway: leave it out"),
    "compile_config": _only(advice="use the decoder's compile="),
    "disable_compile": _only(False, True, advice="use the decoder's compile="),
    "continuous_batching_config": _only(advice="one text at a time: leave it out"),
    # what a config knows of itself
    "transformers_version": _ANY,
}

# what `generate` takes beside a GenerationConfig's attributes, with the values that change nothing
CALL_ARGUMENTS: dict[str, Argument] = {
    **dict.fromkeys(("inputs", "input_ids", "attention_mask", "generation_config", "logits_processor"), _ANY),
    **dict.fromkeys(("stopping_criteria", "prefix_allowed_tokens_fn", "streamer", "tokenizer", "seed"), _ANY),
    "synced_gpus": _only(False, advice="one process decodes one text: leave it out"),
    "assistant_model": _only(advice=_OTHER_DRAFTS),
    "assistant_tokenizer": _only(advice=_OTHER_DRAFTS),
    "custom_generate": _only(advice="this decoder is one already: leave it out"),
    "trust_remote_code": _only(False, advice="no code is loaded: leave it out"),
    "negative_prompt_ids": _only(advice="guidance is not supported: leave it out"),
    "negative_prompt_attention_mask": _only(advice="guidance is not supported: leave it out"),
    "inputs_embeds": _only(advice="draft trees need token ids: pass input_ids"),
    "past_key_values": _only(advice=_OWN_CACHE),
    "cache": _only(advice=_OWN_CACHE),
    "position_ids": _only(advice="positions count from 0: leave it out"),
}


@dataclass
class RadarGenerateOutput(GenerateDecoderOnlyOutput):
    """transformers' output of a decoder-only model, with what the generation took.

    Attributes:
        sequences: [1, P + N] prompt and output.
        scores, logits: N tensors [1, V] float32, if asked for: after and before the processors.
        metrics: of the generation.
    """

    metrics: DecodeMetrics | None = None


def generate_ids(decoder: Any, inputs: Tensor | None, arguments: Mapping[str, Any]) -> Any:
    """See `Decoder.generate_ids`."""
    arguments = dict(arguments)
    if inputs is not None:
        arguments["inputs"] = inputs
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            check_argument(name, value, CALL_ARGUMENTS.get(name))
    streamer, seed = arguments.pop("streamer", None), arguments.pop("seed", None)
    tokenizer = arguments.pop("tokenizer", None)
    tokenizer = decoder.tokenizer if tokenizer is None else tokenizer
    configs = (arguments.get("generation_config"), getattr(decoder.model, "generation_config", None))
    strings = arguments.get("stop_strings")
    strings = next((s for s in (strings, *(getattr(c, "stop_strings", None) for c in configs)) if s is not None), None)
    stop = () if strings is None else (StopStrings(tokenizer, strings),)
    if strings is not None:  # transformers does not hand its tokenizer on, see `run_prepared`
        arguments["stop_strings"] = None
    if arguments.get("generation_config") is not None:
        arguments["generation_config"] = copy.copy(arguments["generation_config"])

    def run(model: Any, input_ids: Tensor, **prepared: Any) -> Any:
        return run_prepared(decoder, input_ids, prepared, streamer=streamer, seed=seed, criteria=stop, put_prompt=True)

    return decoder.model.generate(custom_generate=run, **arguments)


def run_prepared(
    decoder: Any,
    input_ids: Tensor,
    prepared: Mapping[str, Any],
    *,
    streamer: Any = None,
    seed: int | None = None,
    criteria: Sequence[StopCriterion] = (),
    put_prompt: bool = False,
) -> Any:
    """Decode with what transformers has prepared for a `custom_generate` function.

    Args:
        decoder: of the model.
        input_ids: [1, P].
        prepared: `logits_processor`, `stopping_criteria`, `generation_config`, and arguments of the model.
        streamer: gets the tokens; transformers gave it the prompt.
        seed: of the noise; None draws one from torch's default generator.
        criteria: beside those prepared.
        put_prompt: give the streamer the prompt as well.

    Raises:
        ValueError: for what cannot be honoured, by its name.
    """
    config = prepared["generation_config"]
    for name, value in vars(config).items():
        if not name.startswith("_"):
            check_argument(name, value, ARGUMENTS.get(name))
    if input_ids.shape[0] != 1:
        raise UsageError(f"one prompt at a time: expected input_ids of shape [1, P], got {list(input_ids.shape)}")
    ids = decoder.encode(input_ids)
    _check_model_arguments(prepared, len(ids))
    limits: list[int] = []
    ends: set[int] = set()
    others = list(criteria)
    for item in prepared["stopping_criteria"]:
        if type(item) is MaxLengthCriteria:
            limits.append(item.max_length - len(ids))
        elif type(item) is EosTokenCriteria:
            ends.update(int(token) for token in item.eos_token_id)
        else:
            others.append(item)
    limit = decoder._limit(len(ids), min(limits, default=None))
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    keep = bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))
    processors = list(prepared["logits_processor"])
    sampling = None if keep else _in_kernels(processors, bool(config.do_sample), seed)
    processing = None
    if sampling is None:  # the whole chain on the host, temperature and filters included
        processing = HostProcessing(tuple(processors))
        sampling = SamplingParams(temperature=1.0 if config.do_sample else 0.0, seed=seed)
    request = Request(ids, limit, sampling, frozenset(ends), tuple(others), processing)
    sequence = decoder.run(request, streamer, put_prompt=put_prompt)
    rounds = sequence.rounds
    sequences = torch.cat((input_ids, input_ids.new_tensor([sequence.token_ids])), dim=1)
    if not config.return_dict_in_generate:
        return sequences
    output: Any = RadarGenerateOutput  # its annotations say LongTensor, and tuples of one
    return output(
        sequences=sequences,
        scores=_rows([item.scores for item in rounds]) if config.output_scores else None,
        logits=_rows([item.logits for item in rounds]) if config.output_logits else None,
        metrics=summarize(rounds, sum(sum(item.seconds.values()) for item in rounds), decoder.engine_name),
    )


def _rows(parts: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """One [1, V] a token; copies, because what was made in inference mode cannot be worked with."""
    return tuple(row[None].clone() for part in parts if part is not None for row in part)


def _in_kernels(processors: Sequence[Any], do_sample: bool, seed: int) -> SamplingParams | None:
    """What the processors do, as sampling parameters; None if they do something else, or in another order."""
    order = {
        RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
        TemperatureLogitsWarper: ("temperature", "temperature"),
        TopKLogitsWarper: ("top_k", "top_k"),
        TopPLogitsWarper: ("top_p", "top_p"),
        MinPLogitsWarper: ("min_p", "min_p"),
    }
    kinds = [type(item) for item in processors]
    if kinds != [kind for kind in order if kind in kinds]:
        return None
    values: dict[str, Any] = {"temperature": 1.0} if do_sample else {}
    for item in processors:
        name, attribute = order[type(item)]
        ignored = getattr(item, "prompt_ignore_length", None)
        if ignored is not None and bool(torch.as_tensor(ignored).any()):
            return None
        values[name] = getattr(item, attribute)
    return SamplingParams(seed=seed, **values)


def check_argument(name: str, value: Any, known: Argument | None) -> None:
    """Raise ValueError for a value that cannot be honoured, or an argument that is not known."""
    if known is None:
        if value is not None:
            raise UsageError(f"RADAR does not know the argument {name}={value!r}: leave it out")
    elif known.values is not None and not any(value is v or (v is not None and value == v) for v in known.values):
        raise UsageError(f"RADAR cannot honour {name}={value!r}: {known.advice}")


def _check_model_arguments(prepared: Mapping[str, Any], length: int) -> None:
    """What transformers would pass to the model: nothing that would make it see another text."""
    ours = {"generation_config", "logits_processor", "stopping_criteria", "logits_to_keep", "use_cache"}
    for name, value in prepared.items():
        if value is None or name in ours:
            continue
        if name == "attention_mask":
            if not bool((value != 0).all()):
                raise UsageError("RADAR cannot honour an attention_mask with zeros: pass the prompt without padding")
        elif name == "position_ids":
            if value.flatten().tolist() != list(range(length)):
                check_argument(name, value, CALL_ARGUMENTS[name])
        elif name in ("cache", "past_key_values"):  # transformers makes an empty one for every generation
            if value.get_seq_length() > 0:
                check_argument(name, type(value).__name__, CALL_ARGUMENTS[name])
        else:
            check_argument(name, value, CALL_ARGUMENTS.get(name))
