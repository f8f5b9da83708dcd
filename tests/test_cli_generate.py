"""`radar generate`: prompts from everywhere, choice of tokens, chat, refusals."""

import io
import re
from pathlib import Path

import pytest

import radar
from radar.cli import sampling
from radar.cli.main import main
from radar.decoder import RadarDecoder
from radar.engine.fallback import Fallback
from radar.target.load import load_tokenizer

ASSETS = Path(radar.__file__).parent / "assets"
CPU = ["--device", "cpu"]
PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def embedded():
    return RadarDecoder.from_pretrained(device="cpu")


@pytest.fixture
def radar_command(capsys, monkeypatch, embedded):
    """`radar_command(words, stdin=...)` -> status, stdout, stderr; on a decoder that is loaded once."""
    made = []

    def from_pretrained(*args, **options):
        made.append(options)
        return embedded

    monkeypatch.setattr(RadarDecoder, "from_pretrained", from_pretrained)

    def run(*words, stdin=None):
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main(["generate", *map(str, words)])
        return code, *capsys.readouterr()

    run.made = made
    return run


def test_the_text_is_streamed_behind_its_prompt(radar_command, embedded):
    code, out, err = radar_command(PROMPT, "--max-new-tokens", 16)
    assert code == 0
    assert out == PROMPT + embedded.generate(PROMPT, max_new_tokens=16).text + "\n"
    assert "[16 tokens" in err
    assert "tokens per target pass" in err
    assert err.endswith("ended by the limit of tokens]\n")
    assert radar_command(PROMPT, "--max-new-tokens", 16, "--no-echo")[1] == out.removeprefix(PROMPT)


@pytest.mark.parametrize(
    "stdin",
    [b"def add(a, b):", b"def add(a, b):\n", b"def add(a, b):\r\n", b"\xef\xbb\xbfdef add(a, b):\n"],
)
@pytest.mark.parametrize("words", [[], ["-"]])
def test_a_prompt_from_stdin(radar_command, stdin, words):
    expected = radar_command(PROMPT, "--max-new-tokens", 4)[1]
    assert radar_command(*words, "--max-new-tokens", 4, stdin=stdin)[1] == expected


def test_stdin_keeps_its_lines_and_arguments_lose_their_mark(radar_command):
    out = radar_command("--max-new-tokens", 1, stdin="é\n\n\n".encode())[1]
    assert out.startswith("é\n\n")
    assert not out.startswith("é\n\n\n\n\n")
    assert radar_command("\ufeff" + PROMPT, "--max-new-tokens", 1)[1].startswith(PROMPT)


def test_no_prompt_at_all(radar_command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    code, _, err = radar_command()
    assert (code, radar_command.made) == (2, [])
    assert "no prompt: write it behind the command" in err


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "the prompt is empty"),
        (b"\xef\xbb\xbf\n", "the prompt is empty"),
        (b"a\xff", "not UTF-8 text (invalid start byte at byte 1)"),
    ],
)
def test_stdin_without_text(radar_command, stdin, message):
    code, _, err = radar_command(stdin=stdin)
    assert code == 2
    assert message in err


def test_half_a_character_is_a_mistake(radar_command):
    code, out, err = radar_command("a\udcff")
    assert (code, out) == (2, "")
    assert "not UTF-8 text, at its character 2" in err


def options_of(monkeypatch, embedded, *words):
    """What `radar generate` passes to `stream`."""
    seen = {}

    def stream(self, prompt, **options):
        seen.update(options, prompt=prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(RadarDecoder, "stream", stream)
    monkeypatch.setattr(RadarDecoder, "from_pretrained", lambda *args, **options: embedded)
    assert main(["generate", PROMPT, "--no-echo", *words]) == 130
    return seen


def test_choice_of_tokens_is_passed_on(monkeypatch, embedded):
    words = "--temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.2 --seed 3 --stop a --stop b"
    assert options_of(monkeypatch, embedded, *words.split()) == {
        "prompt": PROMPT,
        "max_new_tokens": 256,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 3,
        "stop_strings": ["a", "b"],
        "do_sample": True,
    }


def test_greedy_is_the_default_and_temperature_zero(monkeypatch, embedded):
    greedy = {"prompt": PROMPT, "max_new_tokens": 5, "do_sample": False}
    assert options_of(monkeypatch, embedded, "--max-new-tokens", "5") == greedy
    assert options_of(monkeypatch, embedded, "--max-new-tokens", "5", "--temperature", "0") == greedy


def test_what_the_model_samples_is_sampled_with_a_seed_that_is_told(monkeypatch, embedded):
    monkeypatch.setattr(embedded.model.generation_config, "do_sample", True)
    monkeypatch.setattr(sampling, "_new_seed", lambda: 77)
    seen = options_of(monkeypatch, embedded)
    assert (seen["do_sample"], seen["seed"]) == (True, 77)
    assert options_of(monkeypatch, embedded, "--temperature", "0")["do_sample"] is False


def test_a_sampled_text_can_be_had_again(radar_command):
    shared = (PROMPT, "--max-new-tokens", 24, "--temperature", 1.5)
    _, out, err = radar_command(*shared)
    seed = re.search(r"seed (\d+)", err).group(1)
    assert radar_command(*shared, "--seed", seed)[1] == out
    assert radar_command(*shared, "--seed", int(seed) + 1)[1] != out
    assert "seed" not in radar_command(PROMPT, "--max-new-tokens", 2)[2]


def test_stop_ends_the_text(radar_command):
    whole = radar_command(PROMPT, "--max-new-tokens", 40, "--no-echo")[1]
    word = whole.split()[3]
    out = radar_command(PROMPT, "--max-new-tokens", 40, "--no-echo", "--stop", word)[1]
    assert word in out
    assert len(out) < len(whole)


def test_chat_prints_the_answer_only_and_system_stands_in_front(radar_command, embedded):
    question = "What is 2 + 3?"
    user, system = {"role": "user", "content": question}, {"role": "system", "content": "Be short."}
    for words, messages in ((["--chat"], [user]), (["--system", "Be short."], [system, user])):
        code, out, _ = radar_command(question, *words, "--max-new-tokens", 8)
        assert code == 0
        assert out == embedded.generate(messages, max_new_tokens=8).text + "\n"


@pytest.mark.parametrize("words", [["--chat"], ["--system", "Be short."]])
def test_a_chat_without_a_template_is_refused(radar_command, embedded, monkeypatch, words):
    tokenizer = load_tokenizer(str(ASSETS / "target"))
    tokenizer.chat_template = None
    monkeypatch.setattr(embedded, "tokenizer", tokenizer)
    code, out, err = radar_command("hello", *words)
    assert (code, out) == (2, "")
    assert "has no chat template" in err
    assert "leave out --chat" in err


def test_no_fallback_and_what_came_by_plain_steps(radar_command, capsys, monkeypatch):
    radar_command(PROMPT, "--max-new-tokens", 1)
    radar_command(PROMPT, "--max-new-tokens", 1, "--no-fallback")
    assert [options["fallback"] for options in radar_command.made] == [True, False]
    monkeypatch.undo()
    arguments = ["generate", PROMPT, "--max-new-tokens", "9", *CPU]
    monkeypatch.setattr(Fallback, "drafts", False)
    assert main(arguments) == 0
    assert "0.00 draft calls per round, 8 tokens by plain steps" in capsys.readouterr().err


def test_the_default_limit_is_what_fits(capsys, monkeypatch):
    assert main(["generate", PROMPT, "--max-length", "20", *CPU]) == 0
    assert "ended by the limit of tokens" in capsys.readouterr().err
    assert main(["generate", PROMPT * 20, "--max-length", "20", *CPU]) == 2
    assert "shorten the prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the prompt is empty"),
        (["x", "--max-new-tokens", "0"], "positive integer"),
        (["x", "--max-new-tokens", "99999"], "does not fit"),
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--temperature", "0", "--top-k", "3"], "--temperature 0 takes the likeliest token, where --top-k"),
        (["x", "--top-p", "2"], "top_p"),
        (["x", "--stop", ""], "stop"),
    ],
)
def test_mistakes_are_one_line(radar_command, words, message):
    code, _, err = radar_command(*words)
    assert code == 2
    assert err.strip().splitlines()[-1].startswith("radar generate: ")
    assert message in err
