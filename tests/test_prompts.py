"""Prompt files."""

import json

import pytest

from radar.errors import UsageError
from radar.tools.prompts import PromptLine, encode_prompt, has_chat_template, load_prompts, read_text


def test_both_forms(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "a"}\n\n{"prompt": "b", "chat": true}\n{"question_id": 1, "turns": ["c", "d"], "reference": []}\n'
    )
    assert load_prompts(file) == [PromptLine("a", False), PromptLine("b", True), PromptLine("c", True, ("d",))]
    assert load_prompts(file)[2].turns == ("c", "d")
    assert load_prompts(file, limit=2) == [PromptLine("a", False), PromptLine("b", True)]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"prompt": 3}', '{"prompt": ""}', '{"turns": []}', '{"turns": [1]}', '{"turns": ["a", ""]}'],
)
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2"):
        load_prompts(file)


@pytest.mark.parametrize("character", "\x85\u2028\u2029\xa0")
def test_only_line_ends_end_a_line(tmp_path, character):
    file = tmp_path / "p.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in (f"a{character}b", "c")]
    file.write_bytes("\r\n".join(lines).encode())
    assert load_prompts(file) == [PromptLine(f"a{character}b", False), PromptLine("c", False)]
    file.write_bytes(f"{lines[0]}\n{{\n".encode())
    with pytest.raises(ValueError, match="line 2"):
        load_prompts(file)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin1"))
    with pytest.raises(ValueError, match=r"p\.jsonl is not UTF-8 text .*byte 12"):
        load_prompts(tmp_path / "p.jsonl")


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "\\ufeffb"}\n{"turns": ["\\ufeffc"]}\n', encoding="utf-8-sig")
    assert [line.text for line in load_prompts(file)] == ["a", "b", "c"]
    assert read_text(file).startswith("{")


class Tokenizer:
    """Ids are characters. `template` stands for a chat template."""

    def __init__(self, template=None):
        self.chat_template = template

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [*([0] if add_special_tokens else []), *map(ord, text)]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
        if not self.chat_template:
            raise ValueError("no template")
        text = "".join(f"{message['role'][0]}:{message['content']};" for message in messages)
        return [*map(ord, text + "a:" if add_generation_prompt else text)]

    def decode(self, ids):
        raise NotImplementedError


def test_later_turns_stand_behind_the_answers_before_them():
    line, tokenizer = PromptLine("one", True, ("two", "three")), Tokenizer("a template")
    for answers, text in (
        ([], "u:one;a:"),
        (["eins"], "u:one;a:eins;u:two;a:"),
        (["eins", "zwei"], "u:one;a:eins;u:two;a:zwei;u:three;a:"),
    ):
        assert "".join(map(chr, encode_prompt(line, tokenizer, answers))) == text
    assert encode_prompt(PromptLine("x", False), tokenizer) == [0, ord("x")]


def test_a_chat_without_a_template_is_refused():
    assert not has_chat_template(Tokenizer())
    assert has_chat_template(Tokenizer("a template"))
    with pytest.raises(UsageError, match="a tokenizer with a chat template"):
        encode_prompt(PromptLine("x", True), Tokenizer())


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        load_prompts(tmp_path / "p.jsonl")
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "q.jsonl")
