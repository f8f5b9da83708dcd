"""Prompt files."""

import pytest

from radar.prompts import PromptLine, load_prompts


def test_both_forms(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "a"}\n\n{"prompt": "b", "chat": true}\n{"question_id": 1, "turns": ["c", "d"], "reference": []}\n'
    )
    assert load_prompts(file) == [PromptLine("a", False), PromptLine("b", True), PromptLine("c", True)]
    assert load_prompts(file, limit=2) == [PromptLine("a", False), PromptLine("b", True)]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"prompt": 3}', '{"prompt": ""}', '{"turns": []}', '{"turns": [1]}']
)
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl, line 2"):
        load_prompts(file)


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        load_prompts(tmp_path / "p.jsonl")
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "q.jsonl")
