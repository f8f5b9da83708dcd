"""transformers' `generate` on a decoder: its arguments, defaults and results, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS, CALL_ARGUMENTS, TEXT, check_argument, unknown_argument
from radar.generation.call import check_end_tokens, prepare_request
from radar.generation.options import with_config
from radar.generation.prepare import Prepared
from radar.generation.prompt import encode_prompt
from radar.generation.request import Context, Request, request_of
from radar.metrics import DecodeMetrics, Round, summarize

__all__ = ["IdsCall", "RadarGenerateOutput", "call_of_ids", "call_of_prepared"]


@dataclass
class RadarGenerateOutput(GenerateDecoderOnlyOutput):
    """transformers' output of a decoder-only model, with what the generation took.

    Attributes:
        sequences: [1, P + N] prompt and output.
        scores, logits: N tensors [1, V] float32, if asked for: after and before the processors.
        metrics: of the generation.
    """

    metrics: DecodeMetrics | None = None


@dataclass(frozen=True)
class IdsCall:
    """A call of transformers' `generate`: what to decode, and the form of its result.

    Attributes:
        request: what to decode.
        prepared: what transformers has made of the call.
    """

    request: Request
    prepared: Prepared

    def result(self, rounds: Sequence[Round], engine_name: str) -> Any:
        """Prompt and output [1, P + N] int64, or a `RadarGenerateOutput` where that was asked for."""
        input_ids, config = self.prepared.input_ids, self.prepared.config
        new = [token for item in rounds for token in item.tokens]
        sequences = torch.cat((input_ids, input_ids.new_tensor([new])), dim=1)
        if not config.return_dict_in_generate:
            return sequences
        output: Any = RadarGenerateOutput  # its annotations say LongTensor, and tuples of one
        return output(
            sequences=sequences,
            scores=_rows([item.scores for item in rounds]) if config.output_scores else None,
            logits=_rows([item.logits for item in rounds]) if config.output_logits else None,
            metrics=summarize(rounds, sum(sum(item.seconds.values()) for item in rounds), engine_name),
        )


def call_of_ids(inputs: Tensor | None, arguments: Mapping[str, Any], context: Context) -> IdsCall:
    """A call of `generate_ids`.

    Args:
        inputs: token ids [1, P].
        arguments: of transformers' `generate`, `seed`, `logit_bias` and `reuse_prefix`; a streamer is the decoder's.
        context: of the decoder.

    Raises:
        UsageError: for an argument that is unknown or cannot be honoured, by its name.
    """
    table = ARGUMENTS | CALL_ARGUMENTS
    given = with_config(arguments)
    for name, value in given.items():
        if name not in table:
            raise unknown_argument(name, table)
        if table[name].only == TEXT and value is not None:
            raise UsageError(f"{name}= is an argument of {TEXT}: {table[name].about}")
        check_argument(name, value, table[name])
    given = {name: value for name, value in given.items() if value is not None or table[name].values is None}
    prompts = [ids for ids in (inputs, given.pop("inputs", None), given.pop("input_ids", None)) if ids is not None]
    if len(prompts) > 1:
        raise UsageError("pass the token ids once, as inputs or as input_ids=")
    input_ids = None
    if prompts:
        if not isinstance(prompts[0], Tensor):
            raise UsageError(
                f"generate_ids takes token ids, a tensor of shape [1, P], got {prompts[0]!r:.80}: generate takes text "
                "and chat messages"
            )
        ids = encode_prompt(prompts[0], None, context.vocab_size).ids
        input_ids = torch.tensor([ids], device=context.model.device)
    check_end_tokens(given.get("eos_token_id"), context.vocab_size)
    given.pop("streamer", None)
    reuse = given.pop("reuse_prefix", None)
    reuse = False if reuse is None else reuse
    prepared, request = prepare_request(input_ids, given, context, reuse_prefix=reuse)
    return IdsCall(request, prepared)


def call_of_prepared(input_ids: Tensor, arguments: Mapping[str, Any], context: Context, *, seed: int | None) -> IdsCall:
    """A call of `model.generate(custom_generate=...)`, from what transformers hands to that function.

    Args:
        input_ids: [1, P].
        arguments: `logits_processor`, `stopping_criteria`, `generation_config`, and arguments of the model.
        context: of the decoder.
        seed: of the noise; None draws one from torch's default generator.

    Raises:
        UsageError: for what cannot be honoured, by its name.
    """
    prepared = Prepared.of(input_ids, arguments)
    config, own = prepared.config, getattr(context.model, "generation_config", None)
    # transformers does not say where a limit comes from; one that is the model's own, or its default of 20, is clipped
    ours = config.max_new_tokens == getattr(own, "max_new_tokens", None)
    if config.max_new_tokens is None:
        ours = config.max_length in (getattr(own, "max_length", None), input_ids.shape[1] + 20)
    return IdsCall(request_of(prepared, context, seed=seed, clip=ours), prepared)


def _rows(parts: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """One [1, V] a token; copies, because what was made in inference mode cannot be worked with."""
    return tuple(row[None].clone() for part in parts if part is not None for row in part)
