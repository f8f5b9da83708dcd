"""Recordings that are gone on with, shared and interrupted: what comes out is one recording made at once."""

import hashlib
import json
import os
import signal

import pytest
import torch
from test_fallback import Script
from test_record import PROMPTS, make

from radar.replay.full_round import FullRounds
from radar.replay.record import record
from radar.replay.recording import read_rounds, read_shard, shard_files
from radar.tools.twins import fingerprint


def content(folder):
    return read_rounds(folder).fingerprint()


def at_prompt(monkeypatch, number, action):
    """Do something where the text of one prompt would begin."""
    decode = FullRounds.text

    def text(self, prompt, *args, **options):
        if list(prompt) == PROMPTS[number]:
            action()
        return decode(self, prompt, *args, **options)

    monkeypatch.setattr(FullRounds, "text", text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_goes_on(tmp_path, monkeypatch, capfd, number):
    """At SIGTERM too what was finished is written; the last line and the bar count it when the rest is done."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = record(make(), PROMPTS, whole, max_new_tokens=30, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("radar.replay.record.LANES", 1)  # one text after the other, on a GPU too
        at_prompt(patch, 1, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            record(make(), PROMPTS, parts, max_new_tokens=30, progress=False)
    assert signal.getsignal(number) is {signal.SIGINT: signal.default_int_handler}.get(number, signal.SIG_DFL)
    assert len(shard_files(parts)) == 1
    capfd.readouterr()
    result = record(make(), PROMPTS, parts, max_new_tokens=30)
    assert "1/3" in capfd.readouterr().err
    assert content(parts) == content(whole)
    kept = len(read_rounds(parts).select(read_rounds(parts).prompt == 0))
    assert result == expected | {"out": str(parts), "new_prompts": 2, "new_rounds": expected["rounds"] - kept}
    assert result["rounds"] == expected["rounds"] == len(read_rounds(whole))
    mean = read_rounds(whole).accept_lengths.double().mean(0)
    assert result["mean_accept_length_by_calls"] == pytest.approx(mean.tolist(), abs=1e-4)
    again = record(make(), PROMPTS, parts, max_new_tokens=30, progress=False)
    assert again == expected | {"out": str(parts), "new_prompts": 0, "new_rounds": 0}


def test_a_damaged_shard_is_recorded_again(tmp_path):
    record(make(), PROMPTS[:2], tmp_path / "r", max_new_tokens=30, progress=False)
    record(make(), PROMPTS, tmp_path / "r", max_new_tokens=30, progress=False)
    before, (first, _) = content(tmp_path / "r"), shard_files(tmp_path / "r")
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="recorded again"):
        result = record(make(), PROMPTS, tmp_path / "r", max_new_tokens=30, progress=False)
    assert (result["prompts"], result["new_prompts"]) == (3, 2)
    assert content(tmp_path / "r") == before


def test_the_decoder_is_left_as_it_was(tmp_path):
    """Policy, fallback and the text in its caches; every round drafts, whatever the fallback says."""
    record(make(), PROMPTS, tmp_path / "whole", max_new_tokens=30, progress=False)
    decoder = make()
    decoder.engine.fallback = fallback = Script("dpp")
    text = decoder.generate(PROMPTS[0], max_new_tokens=20).token_ids
    policy, told, held = decoder.policy, list(fallback.told), list(decoder.engine.admission.prefix.ids)
    record(decoder, PROMPTS, tmp_path / "mine", max_new_tokens=30, progress=False)
    assert content(tmp_path / "mine") == content(tmp_path / "whole")
    assert decoder.policy is policy
    assert fallback.told == told != []
    assert decoder.engine.admission.prefix.ids == held
    assert decoder.generate(PROMPTS[0], max_new_tokens=20).token_ids == text


def test_a_source_serves_many_calls(tmp_path):
    decoder, options = make(), {"max_new_tokens": 30, "temperature": 0.8, "progress": False}
    sources, whole, parts = [FullRounds(decoder, 0.8)], tmp_path / "whole", tmp_path / "parts"
    record(decoder, PROMPTS, whole, **options)
    for count in range(1, len(PROMPTS) + 1):
        record(decoder, PROMPTS[:count], parts, **options, sources=sources)
    assert content(parts) == content(whole)
    for other, changed in ((make(), {}), (decoder, {"temperature": 0.0}), (decoder, {"every_token": True})):
        with pytest.raises(ValueError, match="of another decoder, temperature or every_token"):
            record(other, PROMPTS, tmp_path / "no", **{**options, **changed}, sources=sources)


@pytest.mark.slow
@pytest.mark.parametrize("every_token", [False, True])
def test_texts_decoded_at_once_are_recorded_in_order(tmp_path, every_token):
    """Three threads, five texts of unlike lengths; and what was begun alone goes on together."""
    prompts = [[*PROMPTS[i % 3], i % 5, i % 3] for i in range(5)]
    decoder, options = make(), {"max_new_tokens": 20, "temperature": 0.8, "every_token": every_token, "progress": False}
    record(decoder, prompts, tmp_path / "one", **options)
    sources = [FullRounds(decoder, 0.8, every_token=every_token) for _ in range(3)]
    record(decoder, prompts, tmp_path / "three", **options, sources=sources)
    record(decoder, prompts[:2], tmp_path / "grown", **options)
    record(decoder, prompts, tmp_path / "grown", **options, sources=sources)
    assert content(tmp_path / "three") == content(tmp_path / "grown") == content(tmp_path / "one")


def test_an_error_in_one_of_several_texts_comes_through(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("out of memory")

    decoder = make()
    sources = [FullRounds(decoder, 0.0) for _ in range(2)]
    at_prompt(monkeypatch, 2, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        record(decoder, PROMPTS * 3, tmp_path / "r", max_new_tokens=20, progress=False, sources=sources)
    assert read_rounds(tmp_path / "r").prompt.unique().tolist() == [0, 1]


def test_options_and_prompts_are_looked_at_before_anything_starts(tmp_path):
    decoder, out = make(), tmp_path / "rounds"
    prompts = [PROMPTS[0], [1] * 200, PROMPTS[1], [2] * 160]
    message = (
        r"2 of 4 prompts leave no room .*max_length=160 .*prompts 1 \(200 tokens\), 3 \(160 tokens\).*--max-length"
    )
    with pytest.raises(ValueError, match=message):
        record(decoder, prompts, out, max_new_tokens=30, progress=False)
    with pytest.raises(ValueError, match="record: prompt 1: the prompt is empty"):
        record(decoder, [PROMPTS[0], []], out, max_new_tokens=30, progress=False)
    for wrong in (0, -3, True, 2.5):
        with pytest.raises(ValueError, match=r"max_new_tokens \(--max-new-tokens\) must be an integer from 1 to"):
            record(decoder, PROMPTS, out, max_new_tokens=wrong, progress=False)
    assert not out.exists()
    record(decoder, [PROMPTS[0], [2] * 130], out, max_new_tokens=60, progress=False)  # as much as there is room for
    last = read_rounds(out).select(read_rounds(out).prompt == 1).position
    assert 130 < int(last.min()) <= int(last.max()) <= 160 - 6
    with pytest.raises(ValueError, match=r"130 tokens with 31 behind it does not fit max_length=160"):
        FullRounds(decoder, 0.0).text([2] * 130, 31, seed=0)


def test_going_on_with_other_texts_is_refused(tmp_path):
    """Whatever number of prompts is left to do, a folder holds texts of one list and one setting."""
    folder, common = tmp_path / "r", {"max_new_tokens": 40, "metadata": {"target": "t"}, "progress": False}
    decoder = make()
    record(decoder, PROMPTS[:2], folder, **common)
    before = content(folder)
    for prompts, options, message in (
        ([[5, 3, 2], *PROMPTS[1:]], {}, r"prompt 0 is another"),
        (PROMPTS, {"max_new_tokens": 24}, "max_new_tokens 40, not 24"),
        (PROMPTS, {"seed": 5}, "seed 0, not 5"),
        (PROMPTS, {"temperature": 0.5}, "temperature 0.0, not 0.5"),
        (PROMPTS, {"metadata": {"target": "u"}}, "target 't', not 'u'"),
        (PROMPTS, {"metadata": {}}, "target 't', not 'nothing'"),
        (PROMPTS, {"metadata": {"target": "t", "draft": "d"}}, "draft 'nothing', not 'd'"),
    ):
        with pytest.raises(ValueError, match=f"holds another recording .*{message}"):
            record(decoder, prompts, folder, **{**common, **options})
        assert content(folder) == before
    assert record(decoder, PROMPTS, folder, **common)["prompts"] == 3


def test_going_on_with_other_weights_is_refused(tmp_path):
    """The head was trained on, or the target was: the name of the folder does not tell."""
    record(make(), PROMPTS[:1], tmp_path / "r", max_new_tokens=40, progress=False)
    for which in ("target_weights", "draft_weights"):
        decoder = make()
        changed = decoder.model if which == "target_weights" else decoder.draft
        with torch.no_grad():
            next(changed.parameters()).flatten()[0] += 0.5
        with pytest.raises(ValueError, match=which):
            record(decoder, PROMPTS, tmp_path / "r", max_new_tokens=40, progress=False)


def test_what_a_text_depends_on_is_in_the_shard(tmp_path):
    told, options = ["one", "two", "three words here"], {"max_new_tokens": 9, "progress": False}
    record(make(), PROMPTS, tmp_path / "r", **options, seed=7)
    record(make(), PROMPTS, tmp_path / "t", **options, texts=told)
    (file,) = shard_files(tmp_path / "r")
    known, rounds = read_shard(file)
    digests = [hashlib.sha256(json.dumps(prompt).encode()).hexdigest() for prompt in PROMPTS]
    assert known == dict(enumerate(digests))
    about = rounds.header.metadata
    assert (about["max_new_tokens"], about["seed"], about["max_length"]) == (9, 7, 160)
    spelt = [" ".join(map(str, prompt)) for prompt in PROMPTS]  # there is no tokenizer here
    for folder, texts in (("r", spelt), ("t", told)):
        found = read_rounds(tmp_path / folder).prompts
        assert all(torch.equal(found[n], fingerprint(text)) for n, text in enumerate(texts))


def test_a_recording_without_a_round_warns(tmp_path, recwarn):
    decoder, folder = make(), tmp_path / "r"
    for _ in range(2):  # also where nothing is left to do
        with pytest.warns(UserWarning, match="r holds no round: .*max_calls=6 .*max_new_tokens=4 did neither"):
            assert record(decoder, PROMPTS, folder, max_new_tokens=4, progress=False)["rounds"] == 0
    recwarn.clear()
    for _ in range(2):
        record(decoder, PROMPTS, tmp_path / "s", max_new_tokens=40, progress=False)
    assert not recwarn.list


def test_processes_share_the_prompts(tmp_path, monkeypatch):
    """As under `accelerate launch`, which tells each process its number. Two that begin, and three that go on where
    these were interrupted: they write to one folder."""
    whole, parts = tmp_path / "whole", tmp_path / "r"
    record(make(), PROMPTS * 2, whole, max_new_tokens=30, progress=False)

    def launch(index, count, prompts):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        monkeypatch.setenv("RANK", str(index))
        return record(make(), prompts, parts, max_new_tokens=30, progress=False)

    for index in range(2):
        launch(index, 2, PROMPTS)
    assert [file.name for file in shard_files(parts)] == ["prompts-000000.safetensors", "prompts-000001.safetensors"]
    for index in range(3):
        launch(index, 3, PROMPTS * 2)
    assert content(parts) == content(whole)
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="WORLD_SIZE=3 says that there are others, and no RANK"):
        record(make(), PROMPTS, tmp_path / "n", progress=False)
