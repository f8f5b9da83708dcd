"""Texts that the target writes to train a head on: its own, whole, and made once, whoever makes them."""

import json
import signal
import threading

import pytest
from live_server import plain_decoder, shared_decoder, wait_until

from radar.cli.main import main
from radar.errors import FormatError, UsageError
from radar.tools.documents import encode_file
from radar.tools.prompts import PromptLine, encode_prompt
from radar.tools.writing import write_texts

LINES = [
    PromptLine("def add(a, b):", chat=False),
    PromptLine("Add two numbers", chat=True, later=("And three?",)),
    PromptLine("Once", chat=False),
    PromptLine("import", chat=False),
    PromptLine("x", chat=False),
]
PLAIN = [PromptLine(text, chat=False) for text in ("def add(a, b):", "Once", "import", "x")]
OPTIONS = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "progress": False}


def lines_in(folder):
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def texts_in(folder):
    """By number, with the files that hold them."""
    lines = lines_in(folder)
    found = {line["prompt"]: line["text"] for line in lines}
    assert len(found) == len(lines), "a text was written twice"
    return found


def own_ids(number, line):
    """Of prompt and answers, by the decoder without drafts."""
    answers, ids = [], []
    for _ in line.turns:
        prompt = encode_prompt(line, plain_decoder().tokenizer, answers)
        one = plain_decoder().generate(prompt, max_new_tokens=8, temperature=1.0, seed=3 * 1_000_003 + number)
        answers.append(one.text)
        ids = [*prompt, *one.token_ids]
    return ids


def test_texts_are_the_targets_own_and_what_a_head_is_trained_on(tmp_path):
    result = write_texts(shared_decoder(), LINES, tmp_path / "t", **OPTIONS)
    own, tokenizer = [own_ids(*one) for one in enumerate(LINES)], shared_decoder().tokenizer
    assert result == {"out": str(tmp_path / "t"), "texts": 5, "new_texts": 5, "new_tokens": sum(map(len, own))}
    texts = texts_in(tmp_path / "t")
    assert [tokenizer.bos_token + texts[number] for number in range(5)] == [tokenizer.decode(ids) for ids in own]
    assert tokenizer.encode(texts[0]) == own[0]  # of sampled tokens not always: a text has several spellings
    assert "And three?" in texts[1]
    end = tokenizer.eos_token_id
    read = encode_file(tmp_path / "t", tokenizer.encode, eos_token_id=end).tolist()
    ends = {one["prompt"]: one["finish_reason"] for one in lines_in(tmp_path / "t")}
    assert set(ends.values()) == {"length"}
    assert read.count(end) == sum(ids.count(end) for ids in own)  # none behind what the limit has cut off
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "x.jsonl").write_text(json.dumps({"text": texts[0], "finish_reason": "stop"}))
    assert encode_file(tmp_path / "w", tokenizer.encode, eos_token_id=end).tolist() == [*own[0], end]
    assert read.count(tokenizer.bos_token_id) == 5


def test_what_is_there_is_not_written_again(tmp_path):
    """An interrupted run, and prompts that come behind."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_texts(shared_decoder(), LINES, whole, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        write_texts(Interrupted(shared_decoder()), LINES[:4], parts, **OPTIONS)
    assert sorted(texts_in(parts)) == [0, 1]
    assert write_texts(shared_decoder(), LINES, parts, **OPTIONS)["new_texts"] == 3
    assert texts_in(parts) == texts_in(whole)
    assert write_texts(shared_decoder(), LINES, parts, **OPTIONS)["new_texts"] == 0


class Interrupted:
    """A decoder that writes one text after the other, and is interrupted at its fourth answer; it makes no other."""

    max_batch_size = 1

    def __init__(self, decoder):
        self._decoder, self._asked = decoder, 0

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def generate(self, prompt, **options):
        self._asked += 1
        if self._asked >= 4:
            raise KeyboardInterrupt
        return self._decoder.generate(prompt, **options)


class Rows:
    """A decoder of 4 rows; `before` is told of each text before it is made."""

    max_batch_size = 4

    def __init__(self, before):
        self._decoder, self._before = shared_decoder(), before
        self.made = set()

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def generate(self, prompt, *, seed, **options):
        self._before(number := seed - 3 * 1_000_003)
        found = self._decoder.generate(prompt, seed=seed, **options)
        self.made.add(number)
        return found


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interruption_loses_nothing_that_is_decoded(tmp_path, interrupts):
    """The first text is the slow one. A second Ctrl-C waits for nothing, and what there is stays."""
    folder, goes_on, main_thread = tmp_path / "t", threading.Event(), threading.main_thread().ident

    def before(number):
        if number == 0:
            wait_until(lambda: decoder.made == {1, 2, 3})
            signal.pthread_kill(main_thread, signal.SIGINT)
            wait_until(lambda: list(folder.glob("*.jsonl")))  # written while this one is in work
            if interrupts == 2:
                signal.pthread_kill(main_thread, signal.SIGINT)
                assert goes_on.wait(60)

    decoder = Rows(before)
    with pytest.raises(KeyboardInterrupt):
        write_texts(decoder, PLAIN, folder, **OPTIONS)
    found = sorted(texts_in(folder))
    goes_on.set()
    assert found == ([0, 1, 2, 3] if interrupts == 1 else [1, 2, 3])


def test_an_error_loses_nothing_that_is_decoded(tmp_path):
    def before(number):
        if number == 1:
            wait_until(lambda: decoder.made >= {2, 3})
            raise RuntimeError("of this text")
        if number == 0:  # is in work then
            threading.Event().wait(0.5)

    decoder = Rows(before)
    with pytest.raises(RuntimeError, match="of this text"):
        write_texts(decoder, PLAIN, tmp_path / "t", **OPTIONS)
    assert sorted(texts_in(tmp_path / "t")) == [0, 2, 3]


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "t"):
        with pytest.raises(UsageError, match=r"\(--out\) cannot be written"):
            write_texts(shared_decoder(), PLAIN, place, **OPTIONS)


def test_processes_share_the_prompts(tmp_path, monkeypatch):
    """As under `accelerate launch`: two that begin, three that go on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_texts(shared_decoder(), LINES, whole, **OPTIONS)
    for count, lines in ((2, LINES[:3]), (3, LINES)):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        for index in range(count):
            monkeypatch.setenv("RANK", str(index))
            write_texts(shared_decoder(), lines, parts, **OPTIONS)
            if (count, index) == (2, 0):
                assert sorted(texts_in(parts)) == [0, 2]
    assert texts_in(parts) == texts_in(whole)


def test_a_folder_of_other_texts_is_left_alone(tmp_path):
    decoder, folder = shared_decoder(), tmp_path / "t"
    write_texts(decoder, LINES[:2], folder, **OPTIONS)
    before = texts_in(folder)
    for lines, options in (
        (LINES[1::-1], {}),
        (LINES[:1], {}),
        (LINES[:2], {"seed": 4}),
        (LINES[:2], {"max_new_tokens": 9}),
        (LINES[:2], {"metadata": {"target": "another"}}),
    ):
        with pytest.raises(UsageError, match="of another prompt, model or option"):
            write_texts(decoder, lines, folder, **OPTIONS | options)
    with pytest.raises(UsageError, match=r"1 of 1 prompts leave no room .* prompts 0 \(\d+ tokens\)"):
        write_texts(decoder, [PromptLine("x " * 600, chat=False)], tmp_path / "n", **OPTIONS)
    assert texts_in(folder) == before
    (folder / "other.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(FormatError, match=r"other\.jsonl:1 is no text of this command"):
        write_texts(decoder, LINES[:2], folder, **OPTIONS)


def test_the_command(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def f("}\n{"turns": ["Add two numbers"]}\n')
    words = ["write-text", "--prompts", str(prompts), "--out", str(tmp_path / "t"), "--max-new-tokens", "4", "--device"]
    words += ["cpu", "--total-tokens", "8", "--max-calls", "2", "--max-length", "128", "--no-progress", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["new_texts"] == 2
    assert sorted(texts_in(tmp_path / "t")) == [0, 1]


def test_no_text_is_begun_when_the_time_is_over(tmp_path):
    """Those in work are written to their ends, and the next call goes on."""
    decoder = Rows(lambda number: threading.Event().wait(0.3))
    first = write_texts(decoder, PLAIN * 2, tmp_path / "t", seconds=0.1, **OPTIONS)
    assert (first["texts"], first["new_texts"], sorted(texts_in(tmp_path / "t"))) == (4, 4, [0, 1, 2, 3])
    again = write_texts(shared_decoder(), PLAIN * 2, tmp_path / "t", seconds=60.0, **OPTIONS)
    assert (again["texts"], again["new_texts"]) == (8, 4)
