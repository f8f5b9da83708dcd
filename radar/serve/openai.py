"""What a request may hold: OpenAI's fields, and what vLLM has beside them that is done here.

A field that is not here is refused by its name. `Any` fields change no text and are ignored. A list is given up at its
first mistake, and what has too many keys before any is looked at: a body full of mistakes takes no longer than another.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["ChatRequest", "CompletionRequest", "Message", "TextRequest"]

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Nothing = Annotated[float, Field(ge=0, le=0, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Ids = Annotated[list[Token], Field(min_length=1, fail_fast=True)]

MOST_FIELDS, MOST_BIASES, MOST_VARIABLES = 64, 1024, 256


def _few(value: Any, most: int = MOST_FIELDS) -> Any:
    if isinstance(value, dict) and len(value) > most:
        raise ValueError(f"{len(value)} keys, and at most {most} are taken")
    return value


class Strict(BaseModel):
    """Nothing is converted, nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return _few(value)


class Loose(BaseModel):
    """What clients send back of what they were sent: fields that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(Strict):
    """`include_rounds` adds to each chunk a field `radar` about the round that it comes from, a chunk a round."""

    include_usage: bool | None = None
    include_rounds: bool | None = None
    include_obfuscation: Any = None


class TextPart(Loose):
    type: Literal["text"]
    text: str


class CalledFunction(Loose):
    name: Name
    arguments: str


class ToolCall(Loose):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Loose):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Any = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ResponseFormat(Strict):
    type: Literal["text"]


class TextRequest(Strict):
    """What both kinds of request have. What is left out is as the model's generation config says."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    logit_bias: (
        Annotated[
            dict[TokenName, Bias], Field(max_length=MOST_BIASES), BeforeValidator(partial(_few, most=MOST_BIASES))
        ]
        | None
    ) = None
    frequency_penalty: Nothing | None = None
    presence_penalty: Nothing | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None


class ChatRequest(TextRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Any = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    chat_template_kwargs: (
        Annotated[
            dict[str, bool | int | float | str | None],
            Field(max_length=MOST_VARIABLES),
            BeforeValidator(partial(_few, most=MOST_VARIABLES)),
        ]
        | None
    ) = None


class CompletionRequest(TextRequest):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
