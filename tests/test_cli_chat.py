"""`radar chat`: what it remembers, its commands, what Ctrl-C and the end of the input do."""

import builtins
import io
import signal
from pathlib import Path

import pytest

import radar
from radar.cli.main import main
from radar.decoder import RadarDecoder
from radar.generation.text import TextStream
from radar.target.load import load_tokenizer

ASSETS = Path(radar.__file__).parent / "assets"
SHORT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def embedded():
    return RadarDecoder.from_pretrained(device="cpu", max_length=160)


@pytest.fixture
def chat(capsys, monkeypatch, embedded):
    """`chat(lines, *words)` -> status, answers, stderr, and the conversations that were decoded."""
    monkeypatch.setattr(RadarDecoder, "from_pretrained", lambda *args, **options: embedded)
    seen = []
    stream = RadarDecoder.stream

    def noted(self, prompt, **options):
        seen.append([(message["role"], message["content"]) for message in prompt])
        return stream(self, prompt, **options)

    monkeypatch.setattr(RadarDecoder, "stream", noted)

    def run(lines, *words):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()), encoding="utf-8"))
        seen.clear()
        code = main(["chat", *(words or SHORT)])
        out, err = capsys.readouterr()
        return code, out.removesuffix("\n"), err, seen

    return run


class Typed:
    """A terminal: what the user types, line by line; an exception is a key."""

    def __init__(self, monkeypatch, lines):
        lines = iter([*lines, EOFError()])

        def answer(prompt):
            line = next(lines)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", answer)
        monkeypatch.setattr("sys.stdin", self)

    def isatty(self):
        return True


def test_a_conversation_is_kept_and_its_caches_are_used(chat, embedded):
    code, out, err, seen = chat(["What is 2 + 3?", "", "And 3 + 4?"])
    assert code == 0
    question = {"role": "user", "content": "What is 2 + 3?"}
    first = embedded.generate([question], max_new_tokens=6).text
    assert seen == [
        [("user", "What is 2 + 3?")],
        [("user", "What is 2 + 3?"), ("assistant", first), ("user", "And 3 + 4?")],
    ]
    assert out.startswith(first + "\n")
    figures = err.splitlines()
    assert len(figures) == 2
    assert "6 tokens, " in figures[0]
    assert "prompt tokens were cached" in figures[1]


def test_reset_exit_and_what_is_no_command(chat):
    code, _, err, seen = chat(
        ["one", "/reset", "/two", "/three four", "/exit", "five"], *SHORT, "--system", "Be short."
    )
    assert code == 0
    system = ("system", "Be short.")
    assert seen == [[system, ("user", "one")], [system, ("user", "/three four")]]
    assert "[forgotten]" in err
    assert "no command /two: /reset forgets" in err


def test_a_mark_in_front_of_the_first_line_is_no_text(chat):
    assert chat(["\ufeffone"])[3] == [[("user", "one")]]


def test_choice_of_tokens(chat):
    words = (*SHORT, "--temperature", "1.5", "--seed", "3")
    _, out, err, _ = chat(["one"], *words)
    assert "seed 3" in err
    assert chat(["one"], *words)[1] == out
    assert chat(["one"], *words[:-1], "4")[1] != out


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(chat, monkeypatch):
    advance, pieces = TextStream.__next__, []

    def pressed(self):
        piece = advance(self)
        pieces.append(piece)
        if len(pieces) == 2:
            signal.raise_signal(signal.SIGINT)
        return piece

    monkeypatch.setattr(TextStream, "__next__", pressed)
    code, out, err, seen = chat(["Tell me a long story.", "And then?"], "--max-new-tokens", "40")
    said = pieces[0] + pieces[1]
    assert code == 0
    assert out.startswith(said + "\n")
    assert "stopped]" in err.splitlines()[0]
    assert seen[1][:2] == [("user", "Tell me a long story."), ("assistant", said)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_keeps_the_chat_too(chat, monkeypatch, capsys):
    """It does not wait for the round; so does one that comes just before or behind an answer."""

    def pressed(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    Typed(monkeypatch, ["one", "two"])
    with monkeypatch.context() as patch:
        patch.setattr(TextStream, "__next__", pressed)
        patch.setattr("radar.cli.chat.figures", lambda *args: signal.raise_signal(signal.SIGINT))
        assert main(["chat", *SHORT]) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().err.count("Ctrl-C stops") == 3


def test_ctrl_c_and_ctrl_d_at_the_prompt(chat, monkeypatch, capsys):
    Typed(monkeypatch, [KeyboardInterrupt(), "one"])
    assert main(["chat", *SHORT]) == 0
    out, err = capsys.readouterr()
    assert err.count("/exit or Ctrl-D ends") == 2  # at the start and after Ctrl-C
    assert "6 tokens" in err
    assert out.endswith("\n\n")


def test_a_full_conversation_is_said_and_the_chat_goes_on(chat, monkeypatch, capsys):
    long = "many words " * 80
    full = "radar chat: the conversation fills the cache of 160 tokens: /reset begins a new one"
    code, _, err, _ = chat([long])
    assert (code, full in err) == (2, True)
    Typed(monkeypatch, [long, "one"])
    assert main(["chat", *SHORT]) == 0
    err = capsys.readouterr().err
    assert full in err
    assert "tokens/s" in err.splitlines()[-1], "the next message is answered"


def test_an_answer_ends_where_the_cache_does(chat):
    code, _, err, _ = chat(["many words " * 25])
    assert code == 0
    code, _, longer, _ = chat(["many words " * 25], "--max-new-tokens", "500")
    assert code == 0
    assert "ended by the limit" in err
    assert "6 tokens, " not in longer


def test_without_a_template_there_is_no_chat(chat, embedded, monkeypatch):
    tokenizer = load_tokenizer(str(ASSETS / "target"))
    tokenizer.chat_template = None
    monkeypatch.setattr(embedded, "tokenizer", tokenizer)
    code, out, err, _ = chat(["one"])
    assert (code, out) == (2, "")
    assert "no chat template" in err
    assert "radar generate" in err


def test_stdin_that_is_not_text(chat, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    assert main(["chat", *SHORT]) == 2
    assert "radar chat: stdin is not UTF-8 text" in capsys.readouterr().err
