"""`radar train-draft`: a finished head is kept or extended, and sizes that make no sense are refused."""

import json
from pathlib import Path

import pytest
from small_heads import contents

from radar.cli.main import main
from radar.decoder import RadarDecoder

Capture = pytest.CaptureFixture[str]
TARGET = Path(__file__).parent.parent / "radar" / "assets" / "target"
SMALL = ["--intermediate-size", "8", "--draft-vocab-size", "16"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`radar train-draft` on the embedded target, of small steps."""
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n\n\n\n" * 400)
    words = f"train-draft --target {TARGET} --text {tmp_path}/text.txt --out {tmp_path}/head --no-progress --device cpu"
    return [*words.split(), *["--batch-size", "1", "--length", "8", "--ttt-length", "2"]]


def test_a_finished_head_is_kept_and_extended(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main([*command, *SMALL, "--steps", "1"]) == 0
    first, before = capsys.readouterr().out, contents(tmp_path / "head")
    assert first.startswith(f"{tmp_path / 'head'}: 1 steps in ")
    assert "agrees with the target [of positions]" in first
    assert main([*command, *SMALL, "--steps", "1"]) == 0
    assert capsys.readouterr().out == first
    assert contents(tmp_path / "head") == before
    assert main([*command, *SMALL, "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main([*command, *SMALL, "--steps", "1"]) == 2
    assert "radar train-draft: " in (err := capsys.readouterr().err)
    assert "--restart" in err
    assert main([*command, *SMALL, "--steps", "1", "--restart"]) == 0
    taps = json.loads((tmp_path / "head" / "config.json").read_text())["eagle_aux_hidden_state_layer_ids"]
    decoder = RadarDecoder.from_pretrained(str(TARGET), str(tmp_path / "head"), device="cpu", engine="eager")
    assert list(decoder.engine.target.tap_layers) == taps == [2, 3, 4]


@pytest.mark.parametrize("option", ["--steps", "--intermediate-size", "--draft-vocab-size"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_size_of_nothing_is_not_the_default(
    command: list[str], tmp_path: Path, capsys: Capture, option: str, value: str
) -> None:
    assert main([*command, "--seconds" if option != "--steps" else "--seed", "1", f"{option}={value}"]) == 2
    assert f"radar train-draft: {option} must be 1 or more, got {value}" in capsys.readouterr().err
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draft-vocab-size", "5"], "(--draft-vocab-size) must be 10 or more"),
        (["--length", "6000"], "(--length) 6000 + ttt_length 2 is more than the target's 4096 positions"),
        (["--tap-layers", "1,2,x"], "--tap-layers takes numbers such as"),
    ],
)
def test_sizes_that_do_not_fit(command: list[str], capsys: Capture, words: list[str], message: str) -> None:
    assert main([*command, "--steps", "1", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_target_that_was_cut_off_is_named(tmp_path: Path, command: list[str], capsys: Capture) -> None:
    """Whichever command loads it: no traceback."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in TARGET.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    command[command.index("--target") + 1] = str(broken)
    prompts = [
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--out",
        str(tmp_path / "r"),
        "--draft",
        str(TARGET.parent / "draft"),
    ]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a b c"}\n')
    for words in (command, ["record", *prompts, "--target", str(broken), "--device", "cpu"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert f"no transformers model at {str(broken)!r}" in err.splitlines()[-1]
