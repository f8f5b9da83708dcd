"""A prompt in every form that people have it in is the same ids, or is refused with what to do instead."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BatchEncoding

from radar.errors import UsageError
from radar.generation.prompt import check_tokenizer, encode_prompt

VOCAB = 4096
IDS = [5, 3, 2, 8]
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% if not enable_thinking | default(true) %}<quiet>{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "What is a tree?"}
REPLY = {"role": "assistant", "content": "A tree is"}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(str(Path(str(files("radar"))) / "assets" / "target"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def encode(prompt, tokenizer=None, **options):
    return encode_prompt(prompt, tokenizer, VOCAB, **options).ids


def chat(tokenizer, messages, **options):
    """The template's text, that the ids stand for."""
    return tokenizer.decode(encode(messages, tokenizer, **options))


@pytest.mark.parametrize(
    "prompt",
    [
        IDS, tuple(IDS), range(2, 6), np.array(IDS), np.array([IDS], dtype=np.int32), list(np.array(IDS)),
        torch.tensor(IDS), torch.tensor([IDS], dtype=torch.uint8), {"input_ids": IDS}, {"input_ids": [IDS]},
        BatchEncoding({"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 4)}),
    ],
)  # fmt: skip
def test_ids_in_any_form(prompt):
    found = encode_prompt(prompt, None, VOCAB)
    assert found.ids == (list(prompt) if isinstance(prompt, range) else IDS)
    assert not found.is_chat
    assert {type(token) for token in found.ids} == {int}


def test_text_gets_the_tokenizers_ids(tokenizer):
    assert encode("Once upon a time", tokenizer) == tokenizer("Once upon a time")["input_ids"]
    assert encode(tokenizer("Once upon", return_tensors="pt"), tokenizer) == encode("Once upon", tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        (b"abc", r"got bytes: decode it first"),
        (bytearray(b"abc"), "got bytearray: decode it first"),
        (memoryview(b"abc"), "decode it first"),
        ([1, VOCAB], f"from 0 to {VOCAB - 1}, got {VOCAB}"),
        ([1, -1], "got -1"),
        ([1, True], "got True"),
        ([1, np.True_], "must be integers, got"),
        ([1.0], r"got 1\.0"),
        ([np.float32(1)], "must be integers"),
        ([[1, 2]], "must be integers"),
        (torch.zeros(3), r"integers of shape \[P\] or \[1, P\], got torch.float32"),
        (torch.ones(3, dtype=torch.bool), "got torch.bool"),
        (torch.tensor(3), r"got torch.int64 \[\]"),
        (torch.zeros(2, 3, dtype=torch.int64), r"one prompt at a time.*\[2, 3\]"),
        (np.zeros((2, 3), dtype=np.int64), r"one prompt at a time.*\[2, 3\]"),
        (np.zeros(3), "integers of shape"),
        ({"ids": [1]}, r"holds 'input_ids', got the keys \['ids'\]"),
        ({"input_ids": [[1], [2]]}, "one prompt at a time.*got 2 rows"),
        ({"input_ids": IDS, "attention_mask": [0, 1, 1, 1]}, "attention_mask with zeros"),
        (None, "a prompt is text, token ids .* got None"),
        ({1, 2}, "a prompt is text"),
        ("Once \ud800 upon", r"half of a surrogate pair, '\\ud800' at character 5"),
        ([{"role": "user", "content": "\udfff"}], "half of a surrogate pair"),
        ([{"content": "Hi"}], "a chat message is a dict with 'role' and 'content'"),
        ([USER, "Hi"], "a chat message is a dict"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "a list of text parts, got the part",
        ),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, message, tokenizer):
    with pytest.raises(UsageError, match=message):
        encode(prompt, tokenizer)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2) | st.binary(max_size=2)
KEYS = st.sampled_from(["role", "content", "x"])


@given(st.recursive(LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(KEYS, some, max_size=2)))
def test_any_object_is_encoded_or_refused(tokenizer, prompt):
    try:
        found = encode_prompt(prompt, tokenizer, VOCAB)
    except UsageError:
        return
    assert all(type(token) is int and 0 <= token < VOCAB for token in found.ids)
    assert found.ids


def test_messages_ask_for_a_reply_and_a_reply_begun_goes_on(tokenizer):
    assert chat(tokenizer, [USER]) == "<user>What is a tree?</s><assistant>"
    assert chat(tokenizer, [USER, REPLY]) == "<user>What is a tree?</s><assistant>A tree is"
    assert chat(tokenizer, [USER, REPLY, USER]).endswith("A tree is</s><user>What is a tree?</s><assistant>")
    assert encode_prompt([USER], tokenizer, VOCAB).is_chat
    asked = chat(tokenizer, [USER, REPLY], chat_template_kwargs={"add_generation_prompt": True})
    assert asked.endswith("<assistant>A tree is</s><assistant>")
    closed = chat(tokenizer, [USER, REPLY], chat_template_kwargs={"continue_final_message": False})
    assert closed.endswith("<assistant>A tree is</s><assistant>")
    called = {"role": "assistant", "content": None, "tool_calls": []}
    assert chat(tokenizer, [USER, called]).endswith("<assistant>")  # nothing to go on from


def test_tools_and_template_arguments_reach_the_template(tokenizer):
    tool = {"type": "function", "function": {"name": "grow", "parameters": {}}}
    assert chat(tokenizer, [USER], tools=[tool]).startswith('<tools>[{"type": "function", "function": {"name": "grow"')
    assert chat(tokenizer, [USER], chat_template_kwargs={"enable_thinking": False}).startswith("<quiet><user>")
    for options in ({"tools": [tool]}, {"chat_template_kwargs": {"enable_thinking": False}}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}= is for chat messages"):
            encode("Hi", tokenizer, **options)
    with pytest.raises(UsageError, match="chat_template_kwargs must map names to values"):
        encode([USER], tokenizer, chat_template_kwargs=["enable_thinking"])


def test_parts_of_text_are_one_text(tokenizer):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a tree?"}]
    message = {"role": "user", "content": parts}
    assert chat(tokenizer, [message]) == "<user>What is\na tree?</s><assistant>"
    assert message == {"role": "user", "content": parts}  # the caller's is left alone


class OwnTemplate:
    """As mistral-common's: ids out of a method, and no template as text."""

    def apply_chat_template(self, messages, tokenize=True, add_generation_prompt=False, continue_final_message=False):
        assert tokenize
        assert add_generation_prompt != continue_final_message
        return {"input_ids": [[len(messages), int(continue_final_message)]]}


def test_a_template_may_be_a_method():
    assert encode([USER], OwnTemplate()) == [1, 0]
    assert encode([USER, REPLY], OwnTemplate()) == [2, 1]


def test_what_a_template_refuses_is_the_callers(tokenizer):
    class Refusing:
        chat_template = "there is one"

        def apply_chat_template(self, messages, **arguments):
            raise KeyError("roles must alternate")

    class Without(Refusing):
        chat_template = None

    with pytest.raises(UsageError, match=r"does not take these messages.*roles must alternate"):
        encode([USER, USER], Refusing())
    with pytest.raises(UsageError, match="need a tokenizer with a chat template"):
        encode([USER], Without())
    for none in (None, object()):
        with pytest.raises(UsageError, match="need a tokenizer with a chat template"):
            encode([USER], none)


@pytest.mark.parametrize("wrong", ["a/folder", Path("a/folder"), object(), 5])
def test_what_is_no_tokenizer_is_refused(wrong, tokenizer):
    with pytest.raises(UsageError, match="tokenizer must be one of transformers'"):
        check_tokenizer(wrong)
    with pytest.raises(UsageError, match="tokenizer must be one of transformers'"):
        encode("text", wrong)
    check_tokenizer(tokenizer)
    check_tokenizer(None)
    with pytest.raises(UsageError, match="a text prompt needs a tokenizer"):
        encode("text", None)
