"""The arguments of a generation: what becomes of each, in one table.

`generate`, `stream`, `rounds`, `generate_ids` and `custom_generate` ask it; README.md beside this file is made of it:
`python -m radar.generation.arguments > radar/generation/README.md`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from radar.errors import UsageError

__all__ = ["ARGUMENTS", "CALL_ARGUMENTS", "TAKEN_BY_TEXT", "Argument", "check_argument", "unknown_argument"]

TEXT, IDS = "generate, stream, rounds", "generate_ids"


class Argument(NamedTuple):
    """What becomes of one argument.

    Attributes:
        about: what it does here, or what to do instead of a value that is refused.
        values: those that are taken, the one that changes nothing last; None: any that transformers takes.
        only: the entries that take it; empty: all of them.
        is_free: it changes no text of one sequence, so what a model's own generation config says of it is let pass.
    """

    about: str
    values: tuple[Any, ...] | None = None
    only: str = ""
    is_free: bool = False


def _only(*values: Any, instead: str, is_free: bool = False) -> Argument:
    return Argument(instead, (None, *values), is_free=is_free)


_BEAMS = "beam search is not supported: use num_beams=1"
_OTHER_DRAFTS = "RADAR drafts with its own head: leave it out, or use model.generate without RADAR"
_OWN_CACHE = "RADAR has its own static cache: leave it out"
_STATES = "draft trees have no such states for a text: run model(sequences) on the result"
_COMPILE = "leave it out: decoders run kernels of their own"
_HOST = "by transformers' own processor"

_LENGTH = {
    "max_new_tokens": Argument("tokens of the output, at most; without a limit here or in the config, `generate` fills "
                               "the cache and `generate_ids` ends after 20, as transformers does"),
    "max_length": Argument("the same limit, prompt included"),
    "min_new_tokens": Argument("no end token before"),
    "min_length": Argument("the same, prompt included"),
    "max_time": Argument("seconds from the call on, a wait for the decoder included; asked after every token"),
    "eos_token_id": Argument("an id or several that end the text; without it `decoder.eos_token_ids`: what was "
                             "assigned there, else the config's, else, in `generate`, the tokenizer's"),
    "stop_strings": Argument("end the text, which keeps the token that completed them"),
    "pad_token_id": Argument("fills rows of `generate_ids` that end before others; without it an end token does"),
    "bos_token_id": Argument("taken; the prompt of `generate_ids()` without ids"),
}  # fmt: skip
_KERNELS = {
    "do_sample": Argument("samples; `generate` samples too if a temperature above 0 is given"),
    "temperature": Argument("0 is greedy in `generate`; any positive number, 1e-37 to 1e37 in the kernels"),
    "top_k": Argument("where one samples, 50 unless the config or you say otherwise, as in transformers; 0: off"),
    "top_p": Argument("0 to 1; 1: off"),
    "min_p": Argument("0 to 1; 0: off"),
    "repetition_penalty": Argument("1: off"),
    "suppress_tokens": Argument("never chosen"),
    "bad_words_ids": Argument("never chosen; sequences of several tokens on the host"),
    "sequence_bias": Argument("added to scores; sequences of several tokens on the host"),
}
_PROCESSORS = {
    **dict.fromkeys(("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "renormalize_logits"), Argument(_HOST)),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), Argument(_HOST)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), Argument(_HOST)),
    **dict.fromkeys(("encoder_repetition_penalty", "exponential_decay_length_penalty"), Argument(_HOST)),
    **dict.fromkeys(("remove_invalid_values", "watermarking_config"), Argument(_HOST)),
}
_RESULT = {
    "return_dict_in_generate": Argument("a `RadarGenerateOutput`; `generate` returns a `GenerationOutput`", only=IDS),
    "output_scores": Argument("in that output, after the processors; on the host; of one row", only=IDS),
    "output_logits": Argument("in that output, before the processors; on the host; of one row", only=IDS),
    "num_return_sequences": Argument("rows for each row of ids, where one samples", only=IDS),
}
_REFUSED = {
    "output_attentions": _only(False, instead=_STATES),
    "output_hidden_states": _only(False, instead=_STATES),
    "num_beams": _only(1, instead=_BEAMS),
    "num_beam_groups": _only(1, instead=_BEAMS, is_free=True),
    "diversity_penalty": _only(0.0, instead=_BEAMS, is_free=True),
    "length_penalty": _only(1.0, instead=_BEAMS, is_free=True),
    "early_stopping": _only(False, instead=_BEAMS, is_free=True),
    "constraints": _only(instead=_BEAMS),
    "force_words_ids": _only(instead=_BEAMS),
    "penalty_alpha": _only(0.0, instead="contrastive search is not supported: leave it out"),
    "dola_layers": _only(instead="DoLa reads layers that are not run apart: leave it out"),
    "guidance_scale": _only(1, 1.0, instead="guidance needs a second, unconditional pass a token: leave it out"),
    "low_memory": _only(False, instead="it is for contrastive search: leave it out", is_free=True),
    "token_healing": _only(False, instead="heal the prompt first, with model.heal_tokens(input_ids, tokenizer)"),
    "decoder_start_token_id": _only(instead="it is for encoder-decoder models: leave it out", is_free=True),
    "prompt_lookup_num_tokens": _only(instead=_OTHER_DRAFTS, is_free=True),
    "max_matching_ngram_size": _only(2, instead=_OTHER_DRAFTS, is_free=True),
    "assistant_early_exit": _only(instead=_OTHER_DRAFTS, is_free=True),
    "use_mtp": _only(False, instead=_OTHER_DRAFTS, is_free=True),
    "speculation_type": _only(instead=_OTHER_DRAFTS, is_free=True),
    "is_assistant": _only(False, instead=_OTHER_DRAFTS, is_free=True),
    "num_assistant_tokens": _only(20, instead=_OTHER_DRAFTS, is_free=True),
    "num_assistant_tokens_schedule": _only("constant", instead=_OTHER_DRAFTS, is_free=True),
    "assistant_confidence_threshold": _only(0.4, instead=_OTHER_DRAFTS, is_free=True),
    "assistant_lookbehind": _only(10, instead=_OTHER_DRAFTS, is_free=True),
    "target_lookbehind": _only(10, instead=_OTHER_DRAFTS, is_free=True),
    "assistant_ensemble_weight": _only(instead=_OTHER_DRAFTS),
    "use_cache": _only(True, instead="decoding without a cache is not supported: leave it out", is_free=True),
    "cache_implementation": _only("dynamic", instead=_OWN_CACHE, is_free=True),
    "cache_config": _only(instead=_OWN_CACHE, is_free=True),
    "max_cache_len": _only(instead=_OWN_CACHE, is_free=True),
    "prefill_chunk_size": _only(instead="prompts run in chunks anyway: leave it out", is_free=True),
    "compile_config": _only(instead=_COMPILE, is_free=True),
    "disable_compile": _only(True, False, instead=_COMPILE, is_free=True),
    "continuous_batching_config": _only(instead="make the decoder with max_batch_size=", is_free=True),
}
_CALL = {
    "stopping_criteria": Argument("f(input_ids [1, L], scores) -> bool or bool tensor [1], asked after every token, of "
                                  "each text alone"),
    "logits_processor": Argument("f(input_ids [1, L], scores [1, V]) -> scores [1, V], in order, behind those of the "
                                 "config and before temperature and filters; on the host, for each text alone; "
                                 "the texts of a list share the object"),
    "prefix_allowed_tokens_fn": Argument("f(row, ids [L]) -> allowed ids; on the host"),
    "generation_config": Argument("in place of the model's own, whose values fill what it leaves open"),
    "streamer": Argument("gets the prompt, the tokens and the end; `stream` and `rounds` are streams themselves",
                         only="generate, generate_ids"),
    "tokenizer": Argument("for `stop_strings`; without it the decoder's"),
    "seed": Argument("of the noise: one seed is one text for every decoder, tree and policy, so prompt or row i of a "
                     "call gets seed + i; without it the noise follows `torch.manual_seed`"),
    "logit_bias": Argument("token id -> what is added to its score, -inf forbids it"),
    "reuse_prefix": Argument("go on from what the caches hold of this prompt; the text is the same but for rounding; "
                             "left out: for chat messages alone"),
    "logprobs": Argument("with each token its log-probability, and so many of the likeliest in its place with theirs: "
                         "by the model alone, before penalties, biases, temperature and filters", only=TEXT),
    "sampling": Argument("a `SamplingParams` in place of its loose fields", only=TEXT),
    "tools": Argument("functions or JSON schemas for the chat template", only=TEXT),
    "chat_template_kwargs": Argument("what else the chat template takes, as `{\"enable_thinking\": False}`; a last "
                                     "message of the assistant goes on, unless `continue_final_message` says otherwise",
                                     only=TEXT),
    "inputs": Argument("token ids [B, P]; `generate` has `prompt`", only=IDS),
    "input_ids": Argument("the same", only=IDS),
    "attention_mask": Argument("zeros for padding on the left; without it `pad_token_id` is padding, unless it ends "
                               "texts, as in transformers; a row is decoded, and penalised, as it is without padding",
                               only=IDS),
}  # fmt: skip
_CALL_REFUSED = {
    "position_ids": _only(instead="positions count from 0: leave it out"),
    "synced_gpus": _only(False, instead="one process decodes one text: leave it out"),
    "assistant_model": _only(instead=_OTHER_DRAFTS),
    "assistant_tokenizer": _only(instead=_OTHER_DRAFTS),
    "custom_generate": _only(instead="this decoder is one already: leave it out"),
    "trust_remote_code": _only(False, instead="no code is loaded: leave it out"),
    "negative_prompt_ids": _only(instead="guidance is not supported: leave it out"),
    "negative_prompt_attention_mask": _only(instead="guidance is not supported: leave it out"),
    "inputs_embeds": _only(instead="draft trees need token ids: pass input_ids"),
    "past_key_values": _only(instead=_OWN_CACHE),
    "cache": _only(instead=_OWN_CACHE),
}

# every attribute of a GenerationConfig
ARGUMENTS: dict[str, Argument] = {
    **_LENGTH, **_KERNELS, **_PROCESSORS, **_RESULT, **_REFUSED,
    "transformers_version": Argument("what a config knows of itself", is_free=True),
}  # fmt: skip
CALL_ARGUMENTS: dict[str, Argument] = {**_CALL, **_CALL_REFUSED}  # what `generate` takes beside those
TAKEN_BY_TEXT: frozenset[str] = frozenset(
    name for name, known in (ARGUMENTS | CALL_ARGUMENTS).items()
    if known.values is None and known.only in ("", TEXT) and name != "transformers_version"
)  # fmt: skip


def check_argument(name: str, value: Any, known: Argument, origin: str = "") -> None:
    """Raise UsageError for a value that cannot be honoured; `origin` says where it comes from."""
    if known.values is not None and not any(value is v or (v is not None and _equal(value, v)) for v in known.values):
        raise UsageError(f"RADAR cannot honour {name}={value!r:.80}{origin}: {known.about}")


def _equal(value: Any, other: Any) -> bool:
    return type(value) in (bool, int, float, str) and bool(value == other)


def unknown_argument(name: str, known: Iterable[str]) -> UsageError:
    """What to raise for a name that is not in the table."""
    known = sorted(known)
    close = [other for other in known if len(name) > 3 and other.startswith(name)]
    close += difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return UsageError(f"unknown argument {name!r}: {advice}")


_INTRO = """# What `generate` takes

Made of `arguments.py`; a test compares. `decoder.generate`, `stream`, `astream` and `rounds` take text, token ids or
chat messages, `generate` also a list of those; `decoder.generate_ids` and
`model.generate(custom_generate=radar_generate(...))` take and return what transformers' `generate` does, and
`decoder.generate_batch` what its `generate_batch` does. For all of them the model's generation config is the default,
arguments override it, and transformers itself merges both. What is not listed is unknown, and refused with a
suggestion.

A token whose scores go through the host costs a call of every processor, outside of the round's graph; it is counted in
`metrics.num_host_processed_tokens`. Everything else stays in the kernels.
"""

_END = """What a model's own config says of these counts as an argument, unless it changes no text.
"""


def page() -> str:
    """README.md."""
    groups = {
        "Length and end": _LENGTH,
        "How a token is chosen, in the kernels": _KERNELS,
        "Processors, on the host": _PROCESSORS,
        "Beside the config": _CALL,
        "The result of `generate_ids`": _RESULT,
    }
    parts = [_INTRO]
    for title, group in groups.items():
        rows = [(name, known.about + (f" ({known.only} only)" if known.only else "")) for name, known in group.items()]
        parts += [f"## {title}", _table(("argument", "here"), rows)]
    refused = []
    for name, known in (_REFUSED | _CALL_REFUSED).items():
        refused.append((name, ", ".join(f"`{value!r}`" for value in known.values or ()), known.about))
    parts += ["## Refused by name", _table(("argument", "taken", "otherwise"), refused), _END]
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *((f"`{name}`", *rest) for name, *rest in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
