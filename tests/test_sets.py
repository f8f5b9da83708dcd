"""Which prompts train, develop and measure, and which are kept out."""

import json

import pytest

from bench.lab.sets import TASKS, prompt_sets

QUESTION = "Write a function to find the largest of three given numbers."


@pytest.fixture
def folder(tmp_path):
    """`file(rows)` writes what policies may learn from; of each task three prompts measure."""
    for task in TASKS:
        rows = [{"turns": [f"{task} question number {n}"]} for n in range(3)]
        (tmp_path / f"q_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def file(rows):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / "heldout_prompts.jsonl").write_text(text, encoding="utf-8")

    return file, tmp_path


def test_sets_keep_to_their_sources(folder):
    file, path = folder
    sources = ("gsm8k", "mbpp", "codegen", "roleplay")
    file([{"prompt": f"lesson {n} of many", "chat": True, "source": sources[n % 4]} for n in range(48)])
    sets = prompt_sets(path, path, train=100, develop=100, limit=2)
    assert {name: len(lines) for name, lines in sets.items()} == {
        "train": 36, "develop-chat": 6, "develop-gsm8k": 3, "develop-mbpp": 3, **dict.fromkeys(TASKS, 2)
    }  # fmt: skip
    texts = [{line.text for line in lines} for lines in sets.values()]
    assert sum(map(len, texts)) == len(set().union(*texts))  # no prompt is in two sets


def test_near_twins_of_what_measures_are_in_no_other_set(folder):
    """Also of a prompt that the limit leaves out of the measurement."""
    file, path = folder
    (path / "q_mbpp.jsonl").write_text(
        json.dumps({"turns": ["first"]}) + "\n" + json.dumps({"turns": [QUESTION]}) + "\n"
    )
    twins = [QUESTION, QUESTION.lower().replace(".", " !"), QUESTION.replace("a function", "a Python function")]
    others = [QUESTION.replace("largest", "smallest").replace("numbers", "words"), "Write a function.", "first things"]
    file([{"prompt": text, "source": "mbpp"} for text in (*twins, *others, *twins)])
    sets = prompt_sets(path, path, train=9, develop=9, limit=1)
    assert [line.text for line in sets["mbpp"]] == ["first"]
    assert [line.text for name, lines in sets.items() if name not in TASKS for line in lines] == others


def test_sources_stand_beside_their_prompts(folder):
    """A character that ends a line elsewhere is one of a prompt."""
    file, path = folder
    file([{"prompt": f"{kind} {n}\u2028", "source": kind} for n, kind in enumerate(("gsm8k", "mbpp", "gsm8k", "mbpp"))])
    sets = prompt_sets(path, path, train=9, develop=9, limit=9)
    assert [line.text for line in sets["train"]] == ["gsm8k 0\u2028", "mbpp 1\u2028", "gsm8k 2\u2028"]
    assert [line.text for line in sets["develop-mbpp"]] == ["mbpp 3\u2028"]
