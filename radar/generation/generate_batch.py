"""transformers' `generate_batch` on a decoder: its arguments and the fields of its results, or a refusal by name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.continuous_batching import RequestStatus

from radar.errors import UsageError
from radar.generation.hf import call_of_ids
from radar.generation.many import decode_all, seeded
from radar.generation.prompt import encode_prompt
from radar.generation.request import Context, Request
from radar.generation.streamers import release
from radar.generation.turns import RoundMaker

__all__ = ["RequestOutput", "generate_batch"]

# of transformers' generate_batch: what is taken, since it changes nothing here, and what to do instead of the rest
_TAKEN: dict[str, tuple[tuple[Any, ...], str]] = {
    "continuous_batching_config": ((None,), "make the decoder with max_batch_size= and max_length="),
    "record_timestamps": ((False,), "read the rounds of decoder.rounds as they come"),
    "progress_bar": ((False,), "count the texts of decoder.stream as they end"),
    "persistent_manager": ((False,), "the decoder stays as it is"),
    "warmup": ((True, False), "the decoder is warm"),
}


@dataclass
class RequestOutput:
    """What transformers' `generate_batch` says of a request, field by field.

    Attributes:
        request_id: "req_0" and on, in the prompts' order.
        prompt_ids: the prompt.
        generated_tokens: the new tokens.
        logprobs: empty; transformers' own are where its config asks for them.
        error: what failed; None: nothing.
        status: `RequestStatus.FINISHED` or `FAILED`, transformers' own.
        created_time: by `time.perf_counter`.
        lifespan, timestamps: not recorded.
    """

    request_id: str
    prompt_ids: list[int] = field(default_factory=list)
    generated_tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: str | None = None
    status: RequestStatus = RequestStatus.FINISHED
    created_time: float = field(default_factory=time.perf_counter)
    lifespan: tuple[float, float] = (-1, -1)
    timestamps: list[float] | None = None

    def is_finished(self) -> bool:
        """Whether it has ended, with a text or an error."""
        return self.status in (RequestStatus.FINISHED, RequestStatus.FAILED)


def generate_batch(
    inputs: Iterable[Any], config: Any, arguments: Mapping[str, Any], context: Context, maker: RoundMaker
) -> dict[str, RequestOutput]:
    """Decode prompts of ids; see `Decoder.generate_batch`."""
    given = dict(arguments) | ({} if config is None else {"generation_config": config})
    for name, (values, instead) in _TAKEN.items():
        if name in given and given.pop(name) not in values:
            raise UsageError(f"RADAR cannot honour {name}={arguments[name]!r:.80}: {instead}")
    if "streamer" in given:
        release(given["streamer"])
        raise UsageError("RADAR cannot honour streamer= for several prompts: call generate_ids for each")
    if isinstance(inputs, str) or not isinstance(inputs, Iterable):
        raise UsageError(f"generate_batch takes a list of prompts, each a list of token ids, got {inputs!r:.80}")
    prompts = list(inputs)
    outputs = [RequestOutput(f"req_{number}") for number in range(len(prompts))]

    def request(number: int) -> Request:
        ids = outputs[number].prompt_ids = encode_prompt(prompts[number], None, context.vocab_size).ids
        own = {"attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        call = call_of_ids(torch.tensor([ids]), own | seeded(given, number), context)
        if len(call.requests) > 1:
            raise UsageError("RADAR cannot honour num_return_sequences here: give the prompt several times")
        return call.requests[0]

    texts, errors = decode_all(len(prompts), request, maker)
    if prompts and not texts:  # what is wrong is wrong for all of them
        raise errors[0]
    for number, output in enumerate(outputs):
        if number in texts:
            output.generated_tokens = texts[number].token_ids
        if number in errors:
            output.status, output.error = RequestStatus.FAILED, str(errors[number])
    return {output.request_id: output for output in outputs}
