"""A prompt as token ids: text, ids in any of their forms, or chat messages through the tokenizer's template."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from radar.errors import UsageError

__all__ = ["EncodedPrompt", "Prompt", "check_tokenizer", "encode_prompt"]

Prompt = str | Sequence[int] | Tensor | Mapping[str, Any] | Sequence[Mapping[str, Any]]

_KINDS = "text, token ids (a list, an array or a tensor), a tokenizer's output or chat messages"


class EncodedPrompt(NamedTuple):
    """Token ids, one or more, and whether they came from chat messages."""

    ids: list[int]
    is_chat: bool


def check_tokenizer(tokenizer: Any) -> None:
    """Raise UsageError for what cannot be a tokenizer; None is none."""
    if tokenizer is None or (callable(tokenizer) and callable(getattr(tokenizer, "decode", None))):
        return
    if isinstance(tokenizer, str | os.PathLike):
        advice = f"load it first: AutoTokenizer.from_pretrained({os.fspath(tokenizer)!r})"
    else:
        advice = "wrap a tokenizer of the tokenizers library in PreTrainedTokenizerFast(tokenizer_object=...)"
    raise UsageError(f"tokenizer must be one of transformers' tokenizers or None, got {tokenizer!r:.80}: {advice}")


def encode_prompt(
    prompt: Prompt,
    tokenizer: Any,
    vocab_size: int,
    *,
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> EncodedPrompt:
    """Token ids of a prompt, checked.

    Args:
        prompt: text, which gets the tokenizer's special tokens; ids as a sequence of integers, an array or tensor [P]
            or [1, P], or a tokenizer's output with `input_ids`; or chat messages, which get the chat template: a reply
            is asked for, or, where the last message is the assistant's own, that message goes on.
        tokenizer: a transformers tokenizer; None for ids only.
        vocab_size: ids that the target knows.
        tools: that the chat template describes: functions or JSON schemas.
        chat_template_kwargs: what else the tokenizer's `apply_chat_template` takes, such as `enable_thinking`.

    Raises:
        UsageError: for an empty prompt, ids that the target does not know, or what is no prompt at all.
    """
    is_chat = isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    if not is_chat and (tools or chat_template_kwargs):
        name = "tools" if tools else "chat_template_kwargs"
        raise UsageError(f"{name}= is for chat messages, a list of dicts with 'role' and 'content'; got {prompt!r:.80}")
    if is_chat:
        ids = _encode_chat(prompt, tokenizer, tools, chat_template_kwargs or {})
    elif isinstance(prompt, str):
        ids = _encode_text(prompt, tokenizer)
    else:
        ids = _given_ids(prompt)
    if not ids:
        raise UsageError("the prompt is empty: give at least one token")
    wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise UsageError(f"prompt ids must be integers from 0 to {vocab_size - 1}, got {wrong!r}")
    return EncodedPrompt(ids, is_chat)


def _encode_text(text: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        raise UsageError("a text prompt needs a tokenizer; pass tokenizer= to the decoder, or token ids")
    check_tokenizer(tokenizer)
    _check_text(text)
    return _given_ids(tokenizer(text)) if text else []


def _encode_chat(messages: Any, tokenizer: Any, tools: Any, arguments: Mapping[str, Any]) -> list[int]:
    if not callable(getattr(tokenizer, "apply_chat_template", None)):
        raise UsageError("messages need a tokenizer with a chat template: pass tokenizer= to the decoder, or text")
    if not isinstance(arguments, Mapping):
        raise UsageError(f"chat_template_kwargs must map names to values, got {arguments!r:.80}")
    messages = [_plain_message(message) for message in messages]
    unfinished = messages[-1].get("role") == "assistant" and messages[-1].get("content") is not None
    goes_on = arguments.get("continue_final_message", unfinished and not arguments.get("add_generation_prompt"))
    arguments = {"tokenize": True, "add_generation_prompt": not goes_on, **arguments}
    if goes_on:
        arguments["continue_final_message"] = goes_on
    if tools:
        arguments["tools"] = list(tools)
    try:
        found = tokenizer.apply_chat_template(messages, **arguments)
    except Exception as error:  # the template is a program that came with the tokenizer; what it refuses are messages
        if getattr(tokenizer, "chat_template", None):
            raise UsageError(f"the chat template does not take these messages: {error}") from error
        raise UsageError(
            f"messages need a tokenizer with a chat template: set tokenizer.chat_template or pass text ({error})"
        ) from error
    return _given_ids(tokenizer(found, add_special_tokens=False) if isinstance(found, str) else found)


def _plain_message(message: Any) -> dict[str, Any]:
    """A message whose content is text: a list of text parts, as OpenAI's clients send it, is joined by line feeds."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"a chat message is a dict with 'role' and 'content', got {message!r:.80}")
    plain: dict[str, Any] = dict(message)
    content = plain.get("content")
    if isinstance(content, list | tuple):
        other = [part for part in content if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)]
        if other:
            raise UsageError(f"a message's content is text or a list of text parts, got the part {other[0]!r:.80}")
        plain["content"] = content = "\n".join(part["text"] for part in content)
    if isinstance(content, str):
        _check_text(content)
    return plain


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the prompt holds half of a surrogate pair, {text[error.start]!r} at character {error.start}: no text "
            "has that; decode the bytes it came from with errors='replace'"
        ) from None


def _given_ids(prompt: Any) -> list[int]:
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise UsageError(f"a prompt is {_KINDS}, got {type(prompt).__name__}: decode it first, prompt.decode()")
    if isinstance(prompt, Mapping):
        mask = prompt.get("attention_mask")
        if prompt.get("input_ids") is None:
            raise UsageError(f"a prompt as a dict holds 'input_ids', got the keys {sorted(map(str, prompt))}")
        if mask is not None and not bool((torch.as_tensor(mask) != 0).all()):
            raise UsageError("RADAR cannot honour an attention_mask with zeros: pass the prompt without padding")
        ids = prompt["input_ids"]
        return _given_ids(_only_row(ids) if _is_nested(ids) else ids)
    if isinstance(prompt, Tensor | np.ndarray):
        return _ids_of_array(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        raise UsageError(f"a prompt is {_KINDS}, got {prompt!r:.80}")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise UsageError(f"prompt ids must be integers, got {token!r:.80}")
    return [int(token) for token in prompt]


def _is_nested(ids: Any) -> bool:
    return isinstance(ids, Sequence) and len(ids) > 0 and isinstance(ids[0], Sequence)


def _only_row(rows: Sequence[Any]) -> Any:
    if len(rows) != 1:
        raise UsageError(f"one prompt at a time: expected ids of shape [P] or [1, P], got {len(rows)} rows")
    return rows[0]


def _ids_of_array(prompt: Tensor | np.ndarray[Any, Any]) -> list[int]:
    shape: list[int] = list(prompt.shape)
    if isinstance(prompt, np.ndarray):
        whole = prompt.dtype.kind in "iu"
    else:
        whole = not (prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool)
    if len(shape) == 2 and shape[0] != 1:
        raise UsageError(f"one prompt at a time: expected ids of shape [P] or [1, P], got {shape}")
    if len(shape) not in (1, 2) or not whole:
        raise UsageError(f"prompt ids must be integers of shape [P] or [1, P], got {prompt.dtype} {shape}")
    ids: list[int] = prompt.reshape(-1).tolist()
    return ids
