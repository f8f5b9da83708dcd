"""transformers' `generate` on a decoder: its arguments, defaults and results, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from radar.errors import UsageError
from radar.generation.arguments import ARGUMENTS, CALL_ARGUMENTS, TEXT, check_argument, unknown_argument
from radar.generation.call import check_end_tokens, prepare_requests
from radar.generation.options import with_config
from radar.generation.padding import padded, paddings, row_of
from radar.generation.prepare import Prepared
from radar.generation.prompt import encode_prompt
from radar.generation.request import Context, Request, request_of
from radar.metrics import DecodeMetrics, Round, summarize

__all__ = ["IdsCall", "RadarGenerateOutput", "call_of_ids", "call_of_prepared"]


@dataclass
class RadarGenerateOutput(GenerateDecoderOnlyOutput):
    """transformers' output of a decoder-only model, with what the generation took.

    Attributes:
        sequences: [B, P + N] prompt and output, short ones filled on the right.
        scores, logits: N tensors [1, V] float32, if asked for: after and before the processors.
        metrics: of the generation.
    """

    metrics: DecodeMetrics | None = None


@dataclass(frozen=True)
class IdsCall:
    """A call of transformers' `generate`: what to decode, and the form of its result.

    Attributes:
        requests: what to decode, row by row.
        prepared: what transformers has made of the call.
        device: of the result.
    """

    requests: list[Request]
    prepared: Prepared
    device: torch.device

    def check(self, streamer: Any) -> None:
        """Raise UsageError for what one row can have and several cannot."""
        if len(self.requests) == 1:
            return
        config = self.prepared.config
        if streamer is not None:
            raise UsageError(f"RADAR cannot honour streamer= for {len(self.requests)} rows: pass one row at a time")
        for name in ("output_scores", "output_logits"):
            if config.return_dict_in_generate and getattr(config, name):
                raise UsageError(
                    f"RADAR cannot honour {name}=True for {len(self.requests)} rows: pass one row at a time"
                )
        apart = any(request.criteria for request in self.requests) or len({one.limit for one in self.requests}) > 1
        if self._pad is None and apart:
            raise UsageError("rows that may end apart are filled up: pass pad_token_id=")

    @property
    def _pad(self) -> Any:
        """As transformers does: an end token, where nothing is there for it."""
        config = self.prepared.config
        if config.pad_token_id is not None:
            return int(config.pad_token_id)
        ends = config.eos_token_id
        if isinstance(ends, Tensor):
            ends = ends.flatten().tolist()
        return ends[0] if isinstance(ends, list | tuple) else ends

    def result(self, texts: Sequence[Sequence[Round]], engine_name: str, seconds: float) -> Any:
        """Prompts and outputs [B, P + N] int64, or a `RadarGenerateOutput` where that was asked for.

        Args:
            texts: of each row, its rounds.
            engine_name: for the metrics.
            seconds: that the call took.
        """
        input_ids, config = self.prepared.input_ids.to(self.device), self.prepared.config
        new = padded([[token for item in rounds for token in item.tokens] for rounds in texts], self._pad)
        sequences = torch.cat((input_ids, input_ids.new_tensor(new)), dim=1)
        if not config.return_dict_in_generate:
            return sequences
        output: Any = RadarGenerateOutput  # its annotations say LongTensor, and tuples of one
        return output(
            sequences=sequences,
            scores=_rows([item.scores for item in texts[0]]) if config.output_scores else None,
            logits=_rows([item.logits for item in texts[0]]) if config.output_logits else None,
            metrics=summarize(chain.from_iterable(texts), seconds, engine_name, num_generations=len(texts)),
        )


def call_of_ids(inputs: Tensor | None, arguments: Mapping[str, Any], context: Context) -> IdsCall:
    """A call of `generate_ids`.

    Args:
        inputs: token ids [B, P], padded on the left.
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
    kept = {name for name in given if table[name].values is None} - {"num_return_sequences"}  # None says something
    given = {name: value for name, value in given.items() if value is not None or name in kept}
    prompts = [ids for ids in (inputs, given.pop("inputs", None), given.pop("input_ids", None)) if ids is not None]
    if len(prompts) > 1:
        raise UsageError("pass the token ids once, as inputs or as input_ids=")
    input_ids = None
    if prompts:
        if not isinstance(prompts[0], Tensor):
            raise UsageError(
                f"generate_ids takes token ids, a tensor of shape [B, P], got {prompts[0]!r:.80}: generate takes text "
                "and chat messages"
            )
        rows = prompts[0] if prompts[0].dim() == 2 and len(prompts[0]) else prompts[0][None]
        ids = [encode_prompt(row, None, context.vocab_size).ids for row in rows]
        input_ids = torch.tensor(ids)
    check_end_tokens(given.get("eos_token_id"), context.vocab_size)
    streamer = given.pop("streamer", None)
    reuse = given.pop("reuse_prefix", None)
    reuse = False if reuse is None else reuse
    prepared, requests = prepare_requests(input_ids, given, context, reuse_prefix=reuse)
    call = IdsCall(requests, prepared, context.model.device)
    call.check(streamer)
    return call


def call_of_prepared(
    input_ids: Tensor, arguments: Mapping[str, Any], context: Context, *, seed: int | None, streamer: Any = None
) -> IdsCall:
    """A call of `model.generate(custom_generate=...)`, from what transformers hands to that function.

    Args:
        input_ids: [B, P].
        arguments: `logits_processor`, `stopping_criteria`, `generation_config`, and arguments of the model.
        context: of the decoder.
        seed: of the noise, plus its row's number; None draws one from torch's default generator.
        streamer: of the call.

    Raises:
        UsageError: for what cannot be honoured, by its name.
    """
    prepared = Prepared.of(input_ids, arguments)
    config, own = prepared.config, getattr(context.model, "generation_config", None)
    # transformers does not say where a limit comes from; one that is the model's own, or its default of 20, is clipped
    ours = config.max_new_tokens == getattr(own, "max_new_tokens", None)
    if config.max_new_tokens is None:
        ours = config.max_length in (getattr(own, "max_length", None), input_ids.shape[1] + 20)
    requests, left = [], paddings(prepared)
    for row, padding in enumerate(left):
        own = None if seed is None else seed + row
        request = request_of(row_of(prepared, row, padding), context, seed=own, clip=ours, padding=padding)
        requests.append(request)
        if request.processing is not None and (padding or len(left) > 1):  # they were made for ids [B, P]
            raise UsageError(
                "RADAR cannot honour processors on the host for several rows or padding behind custom_generate: call "
                "generate_ids of its decoder, or pass one row at a time"
            )
    call = IdsCall(requests, prepared, input_ids.device)
    call.check(streamer)
    return call


def _rows(parts: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """One [1, V] a token; copies, because what was made in inference mode cannot be worked with."""
    return tuple(row[None].clone() for part in parts if part is not None for row in part)
