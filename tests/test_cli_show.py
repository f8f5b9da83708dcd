"""`radar show`: the files that it writes, the README's picture among them, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

import radar
from radar import RadarDecoder
from radar.cli.main import main

COMMAND = [
    "radar", "show", "Write a function to remove all duplicates from a given list.", "--chat", "--device", "cpu",
    "--output", "example.svg",
]  # fmt: skip


def test_the_readmes_picture_is_what_its_command_makes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", COMMAND)
    assert main() == 0
    assert capsys.readouterr().out.startswith("example.svg: 39 tokens in 6 rounds")
    committed = Path(radar.__file__).parent / "tools" / "show" / "example.svg"
    assert (tmp_path / "example.svg").read_bytes() == committed.read_bytes()


def test_the_command_writes_a_page(capsys, tmp_path):
    file = tmp_path / "page.html"
    options = ["--policy", "3", "--max-new-tokens", "8", "--device", "cpu", "--output", str(file)]
    options += ["--temperature", "0.5", "--seed", "7", "--system", "Be short."]
    assert main(["show", "def add(a, b):", *options]) == 0
    data = json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)[1])
    assert data["about"]["policy"] == "FixedDepth(3)"
    assert data["about"]["tokens"] == "sampled, seed 7, temperature 0.5"
    assert data["figures"]["draft_calls_per_round"] == 3
    assert "Be short." in "".join(text for text, _ in data["prompt"])
    assert "tokens in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--output", "page.pdf"], "must end in .html"),
        (["--output", "nowhere/page.html"], "there is no folder 'nowhere'"),
        (["--engine", "graph"], "leave --engine out"),
    ],
)
def test_the_command_refuses_before_it_loads(wrong, says, capsys, monkeypatch):
    monkeypatch.setattr(RadarDecoder, "from_pretrained", None)
    try:
        code = main(["show", "x", *wrong])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert says in capsys.readouterr().err
