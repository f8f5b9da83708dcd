"""The end-to-end comparison: the whole pipeline on tiny shapes, its reports, and what it refuses."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fakes import tiny_draft, tiny_target
from measured_runs import ISSUE_KEYS, full_runs, predictions

from bench import end_to_end, plots, tables
from bench.lab import alpha_ablation, contenders, pieces, replay_error, train_pair, train_target, transfer
from bench.lab.calibration import calibration
from bench.lab.data import save_tokenizer, train_tokenizer
from bench.lab.policies import METHODS
from bench.lab.recipes import RECIPES, SIZES
from bench.lab.record_pair import TASKS, files_of, prompt_sets, rounds_of
from bench.lab.speed import AUTOREGRESSIVE, summarise
from bench.lab.widen import _problems
from bench.shapes import Geometry
from radar import DraftConfig, TreeConfig
from radar.draft.checkpoint import save_draft
from radar.train.costs import CostTable
from radar.train.dataset import RoundDataset, RoundsHeader
from radar.train.round_writer import RoundWriter

VOCAB, LIVE = 300, 17  # ids of the tokenizer; those that the tiny model ever says


def rounds(count=60, calls=6, k=4):
    """Random rounds of twelve prompts, one draft token accepted for every call that the first score allows."""
    scores = (-torch.rand(count, calls, k) * 0.4).cumsum(1).sort(dim=2, descending=True).values - 1.5
    reached = torch.rand(count, calls).sort(dim=1).values > 0.5
    accept = (~reached).long().cumprod(1).cumsum(1)
    header = RoundsHeader(TreeConfig(tree_top_k=k, max_calls=calls))
    return RoundDataset(scores, accept, torch.arange(count) // 5, torch.arange(count) % 5 + 5, header)


def test_calibration_by_hand():
    data = rounds(4, calls=2, k=2)
    data.scores[:, 1] = torch.tensor([[0.30, 0.25], [0.30, 0.25], [0.05, 0.03], [0.5, 0.5]]).log()
    data.accept_lengths[:] = torch.tensor([[1, 2], [1, 1], [0, 0], [1, 2]])
    bins = calibration(data, 2)
    assert [one["rounds"] for one in bins] == [1, 2, 1]
    assert [one["observed"] for one in bins] == [0.0, 0.5, 1.0]
    assert [one["claimed"] for one in bins] == pytest.approx([0.08, 0.55, 1.0])


def test_the_ablation_has_a_row_for_each_alpha_and_one_without(tmp_path):
    data = rounds()
    file = tmp_path / "rounds.jsonl"
    with RoundWriter(file, data.header) as writer:
        for prompt in range(12):
            part = data.select(data.prompt == prompt)
            writer.write_prompt(prompt, part.position, part.scores, part.accept_lengths)
    out = tmp_path / "alpha_ablation.json"
    words = ["--work", str(tmp_path / "work"), "--epochs", "1", "--max-calls", "6", "4", "--out", str(out)]
    with pytest.warns(UserWarning, match="the policy"):
        assert alpha_ablation.main(["--rounds", str(file), *words]) == 0
    record = json.loads(out.read_text())
    assert record["rounds"] == 60
    for calls in ("6", "4"):
        curve = record["curves"][calls]
        assert len(curve) == len(alpha_ablation.ALPHAS) + 1 >= 9
        assert [one["alpha"] for one in curve] == [*alpha_ablation.ALPHAS, None]
        assert all(1 <= one["draft_calls"] <= int(calls) for one in curve)
    assert str(tmp_path) not in record["command"]
    assert alpha_ablation.main(["--rounds", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "no.json")]) == 0
    assert not (tmp_path / "no.json").exists()


def result_files(folder):
    """Small ones of every kind."""
    machine = {"hardware": "a card", "commit": "abc"}
    full = {"command": "python -m bench.end_to_end", "machine": machine, **summarise(full_runs(), {}, predictions())}
    full["replay"] = predictions()
    alpha = {"objective": "0.1", "alpha": 0.1, "over_eagle3": 1.1, "interval": [1.0, 1.2], "draft_calls": 5.0}
    alpha |= {"mean_acceptance_length": 3.0, "collapsed": None}
    curve = [alpha, {**alpha, "objective": "throughput", "alpha": None, "over_eagle3": 1.25}]
    names = ("beam-mass threshold", "RADAR as published", "LSTM, throughput objective")
    part = {"prefix": 1024, "verify": 4.0, "draft_calls": [0.5, 0.25, 0.25], "decision": 0.1, "select": 0.1}
    part |= {"accept": 0.1, "commit": 0.1}
    files = {
        "end_to_end_full": full,
        "alpha_ablation": {"curves": {"8": curve}},
        "replay_policies": {"sets": {"a set": {"policies": [{"name": n, "gap_closed": 0.5} for n in names]}}},
        "round_h200": {"parts": [part]},
        "calibration": {"calls": {"1": [{"claimed": 0.5, "observed": 0.4, "rounds": 9}]}},
    }
    for name, record in files.items():
        text = json.dumps({"command": f"python -m {name}", "machine": machine, **record})
        (folder / f"{name}.json").write_text(text)


def test_the_report_shows_what_is_there(tmp_path):
    result_files(tmp_path)
    (tmp_path / "replay_policies.json").unlink()
    assert tables.write_tables(tmp_path) == [
        "Rules of the literature, by replay: no contenders.json",
        "Share of the gap to the oracle: no replay_policies.json",
    ]
    text = (tmp_path / "report.md").read_text()
    assert "| a gsm8k T=0 | 3 | 5 | 2.40 | 2.50 | 2.93 | 2.73 | 3.00 | 1.250 (1.250 to 1.250) | 3 of 3 |" in text
    assert "Draft calls -25.0%" in text
    assert "| 0 | 2 | 1.260 | 1.212 | 1.190 | 1.250 |" in text  # replay: 126 / 100, 126 / 104, 125 / 105, 131.25 / 105
    assert "| 8 | throughput | 1.250 (1.000 to 1.200) | 5.00 | 3.00 |  |" in text
    assert "| 1,024 tokens | decisions | 0.300 | 5.4% |" in text
    assert "python -m round_h200" in text
    assert "| 15 to 16 | 2 | 1.443 | 1.386 | 1.184 | 1.270 |" in text  # 5 / 4 and 5 / 3; 4.8, 4.1 and 4.4 over the same


def test_every_figure_is_drawn(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    result_files(tmp_path)
    assert plots.write_plots(tmp_path, pyplot) == ["embedded.png: no embedded_mt_bench.json"]
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == set(plots.PLOTS) - {"embedded"}


def test_pieces_come_back(tmp_path):
    folder = tmp_path / "pair"
    (folder / "target").mkdir(parents=True)
    (folder / "target" / "model").write_bytes(bytes(range(256)) * 40)
    made = pieces.split(folder, tmp_path / "out", limit=4096)
    assert len(made) > 2
    assert max(piece.stat().st_size for piece in made) == 4096
    pieces.join(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "target" / "model").read_bytes() == bytes(range(256)) * 40
    made[1].write_bytes(b"x" * 4096)
    with pytest.raises(ValueError, match="not those that were cut"):
        pieces.join(tmp_path / "out", tmp_path / "again")
    made[1].unlink()
    with pytest.raises(ValueError, match="lacks piece-1"):
        pieces.join(tmp_path / "out", tmp_path / "again")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tiny pair that says few ids, and prompt files."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    model = tiny_target(vocab_size=VOCAB, max_position_embeddings=2048, eos_token_id=3)
    draft = tiny_draft(vocab_size=VOCAB, draft_vocab_size=VOCAB)
    for layer in (model.lm_head, draft.lm_head):
        layer.weight.data[:4] = layer.weight.data[LIVE:] = 0  # their logits are 0: among 13 others one is above
    model.save_pretrained(folder / "pair" / "target")
    save_draft(draft, folder / "pair" / "draft", dtype=torch.float32)
    words = [f"{a}{b} {a * 2}{b * 3}" for a in "abcdefgh" for b in "ijklmnop"]
    tokenizer = train_tokenizer(iter(words), VOCAB)
    assert tokenizer.get_vocab_size() == VOCAB
    save_tokenizer(tokenizer, folder / "pair" / "target")
    prompts, data = folder / "prompts", folder / "data"
    prompts.mkdir()
    data.mkdir()
    for task in TASKS:
        rows = [{"turns": [f"{task} question {n}"]} for n in range(3)]
        (prompts / f"q_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = ("gsm8k", "mbpp", "codegen", "python")
    rows = [{"prompt": f"lesson {n} of many", "chat": n % 4 < 3, "source": sources[n % 4]} for n in range(48)]
    (data / "heldout_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


SHAPES = {
    "llama": Geometry(
        name="wide", layers=6, hidden_size=48, intermediate_size=64, heads=4, kv_heads=2, head_dim=16, vocabulary=400,
        draft_vocabulary=390,
    )
}  # fmt: skip


def command(lab, *more):
    return [
        "--pair", f"llama={lab / 'pair'}", "--data", str(lab / "data"), "--prompts", str(lab / "prompts"), "--work",
        str(lab / "work"), "--out", str(lab / "results"), "--limit", "2", "--train", "3", "--develop", "1", "--epochs",
        "1", "--workers", "1", "--new-tokens", "24", "--max-length", "200", "--cost-repeats", "1",
        "--repeats", "1", *more,
    ]  # fmt: skip


def test_sets_keep_to_their_sources(lab):
    sets = prompt_sets(lab / "data", lab / "prompts", train=100, develop=100, limit=2)
    assert len(sets["train"]) == 27  # a quarter of the first 36 is raw text of modules
    assert len(sets["gsm8k"]) == 2
    assert len(sets["develop-gsm8k"]) == len(sets["develop-mbpp"]) == len(sets["develop-chat"]) == 3
    texts = [{line.text for line in lines} for name, lines in sets.items() if name in ("train", "develop-gsm8k")]
    assert not texts[0] & texts[1]


def test_the_first_prompts_of_a_set_come_from_all_shares(tmp_path):
    for share in range(2):
        data = rounds(25)  # prompts 0 to 4 of the share, which are every other one of the set
        file = files_of(tmp_path, "gsm8k", 0.0, f"{share}-of-2")[60]
        with RoundWriter(file, data.header) as writer:
            for prompt in range(5):
                part = data.select(data.prompt == prompt)
                writer.write_prompt(prompt, part.position + 100 * share, part.scores, part.accept_lengths)
    found = rounds_of(tmp_path, "gsm8k", 0.0, 60, prompts=3)
    assert sorted(set(found.prompt.tolist())) == [0, 1, 2]
    assert sorted(found.position.tolist()) == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 105, 106, 107, 108, 109]
    assert len(rounds_of(tmp_path, "gsm8k", 0.0, 60)) == 50


def test_a_prompt_that_measures_is_refused_for_training(lab, tmp_path):
    row = json.dumps({"prompt": "mbpp question 2", "chat": True})
    (tmp_path / "heldout_prompts.jsonl").write_text(row + "\n" + json.dumps({"prompt": "other"}) + "\n")
    with pytest.raises(ValueError, match="holds 1 prompts that measure"):
        prompt_sets(tmp_path, lab / "prompts", train=9, develop=9, limit=1)  # also one that the limit leaves out


@pytest.mark.slow
def test_the_whole_pipeline(lab, capfd):
    # it stops when its time is up and goes on where it was
    stages = ["record", "costs", "policies", "replay", "measure"]
    assert end_to_end.main(command(lab, "--seconds", "0", "--stages", *stages), SHAPES) == end_to_end.OUT_OF_TIME
    assert end_to_end.main(command(lab, "--stages", *stages), SHAPES) == 0
    runs = lab / "work" / "llama" / "runs.jsonl"
    first = runs.read_bytes()
    runs.write_bytes(first[:-30])  # a crash tore the last line
    assert end_to_end.main(command(lab), SHAPES) == 0
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert len(lines) == len(TASKS) * 2 * 2 * (1 + len(METHODS))  # prompts, temperatures
    assert runs.read_bytes().startswith(first[: first[:-30].rfind(b"\n")])

    full = json.loads((lab / "results" / "end_to_end_full.json").read_text())
    assert len(full["cells"]) == 8
    for cell in full["cells"].values():
        assert cell["texts_identical"] == cell["texts"] == 2
        assert set(cell["methods"]) == {AUTOREGRESSIVE, *METHODS}
        assert cell["methods"]["eagle3"]["draft_calls_per_round"] == 8
        assert cell["methods"]["eagle3"]["mean_acceptance_length"] > 1
        assert cell["methods"]["published"]["draft_calls_per_round"] <= 8
    texts = {(run["task"], run["prompt"], run["temperature"]): run["text"] for run in lines}
    assert texts["mbpp", 0, 0.0] != texts["mbpp", 0, 1.0]
    short = json.loads((lab / "results" / "end_to_end.json").read_text())
    assert list(short) == ISSUE_KEYS
    # random scores leave no gap to close; everything else is a number
    assert all(short[name] is not None for name in ISSUE_KEYS if name != "oracle_gap_closed")
    checked = full["pairs"]["llama"]["check"]
    assert checked["torch.float32"]["equal_texts"] == checked["torch.float32"]["prompts"] == 4
    assert checked["torch.float32"]["logits"] < 1e-4 < checked["torch.bfloat16"]["logits"]
    assert full["generate"]["llama"]["dynamic"]["texts_equal"] == 4
    choice = full["pairs"]["llama"]["choices"]["T0"]
    assert choice["fixed"].keys() == set(TASKS)

    # what follows the recorded rounds and the chosen policies
    assert transfer.main(["--work", str(lab / "work"), "--out", str(lab / "transfer.json")]) == 0
    moved = json.loads((lab / "transfer.json").read_text())
    assert set(moved["radar"]["llama"]) == set(moved["threshold"]["llama"]) == {"llama"}
    assert set(moved["4 times"]["llama"]) == {"as trained", "trained for it", "threshold"}
    curve = moved["curve"]["llama"]
    assert list(curve) == ["1", "2", "4", "8"]
    assert curve["1"]["over_eagle3"] == pytest.approx(moved["radar"]["llama"]["llama"])
    assert curve["4"]["over_eagle3"] == pytest.approx(moved["4 times"]["llama"]["trained for it"])
    assert curve["8"]["draft_calls_change"] <= curve["1"]["draft_calls_change"] <= 1.0
    assert moved["4 times"]["llama"]["threshold"] > moved["threshold"]["llama"]["llama"] > 0  # dear calls favour it
    out = ["--out", str(lab / "contenders.json"), "--temperatures", "0", "--epochs", "2"]
    assert contenders.main(["--work", str(lab / "work"), *out]) == 0
    compared = json.loads((lab / "contenders.json").read_text())
    twice = tables.rules({**compared, "overall": {"0": compared["overall"]["0"], "1": compared["overall"]["0"]}})
    assert twice.count("\n\nTemperature 1, 4 cells of llama:\n\n") == 1  # a blank line ends the table before it
    shown = [line.split(" | ") for line in tables.rules(compared).splitlines() if line.startswith("| ")]
    assert [float(line[1]) for line in shown[2:]] == sorted((float(line[1]) for line in shown[2:]), reverse=True)
    assert "RADAR" in {line[0].strip("| ") for line in shown}
    tasks = compared["pairs"]["llama"]["0"]["tasks"]
    ratios = [row["ratio"] for rows in tasks.values() for row in rows if row["name"] == "RADAR"]
    assert len(ratios) == len(TASKS)
    assert compared["overall"]["0"]["RADAR"]["over_eagle3"] == pytest.approx(math.prod(ratios) ** 0.25)
    assert compared["overall"]["0"]["EAGLE-3 (8 calls)"] | {"mean_acceptance_length": 0} == {
        "cells": 4, "over_eagle3": pytest.approx(1.0), "draft_calls": 8.0, "mean_acceptance_length": 0
    }  # fmt: skip
    words = ["--pair", str(lab / "pair"), "--work", str(lab / "work" / "llama"), "--prompts", str(lab / "prompts")]
    words += ["--limit", "2", "--new-tokens", "24", "--max-length", "200", "--out", str(lab / "replay_error.json")]
    assert replay_error.main(words) == 0
    checked = json.loads((lab / "replay_error.json").read_text())
    for methods in checked["tasks"].values():
        assert methods["eagle3"]["replay"]["draft_calls"] == methods["eagle3"]["decoding"]["draft_calls"] == 8
        for one in methods.values():
            ratio = one["replay"]["tokens_per_second"] / one["decoding"]["tokens_per_second"]
            assert one["error"] == pytest.approx(ratio - 1)
            assert abs(one["error"]) < 1e-4  # the same text, in float32
            assert one["decoding"]["mean_acceptance_length"] > 1
    assert 0 <= checked["mean_error"] <= checked["largest_error"]
    words[-1] = str(lab / "wide.json")
    assert replay_error.main([*words, "--wide", "llama"], SHAPES) == 0
    checked = json.loads((lab / "wide.json").read_text())
    assert checked["largest_error"] < 0.02 < checked["largest_error_by_the_clock"]  # the same text; a CPU is no GPU


@pytest.mark.parametrize("size", ["lab", "small"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_its_large_model(name, size):
    recipe, sizes = RECIPES[name], SIZES[size]
    vocabulary = range(16384)  # stands for the tokenizer: its length is read
    args = train_target.parse(["--out", "x", *train_pair.target_arguments(recipe, sizes)])
    tokenizer = type("Tokenizer", (), {"__len__": lambda _: len(vocabulary), "bos_token_id": 0, "eos_token_id": 3})()
    with torch.device("meta"):
        config = train_target.build(args, tokenizer).config
    assert config.num_attention_heads // config.num_key_value_heads == recipe.group
    assert recipe.group == recipe.geometry.heads // recipe.geometry.kv_heads
    assert args.instruct_share == list(recipe.instruct_share)
    head = DraftConfig(
        hidden_size=sizes.hidden, intermediate_size=sizes.draft_intermediate, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads // recipe.group, head_dim=sizes.head_dim, vocab_size=len(vocabulary),
        draft_vocab_size=sizes.draft_vocabulary, target_hidden_size=sizes.hidden,
    )  # fmt: skip
    assert _problems(config, SimpleNamespace(config=head), recipe.geometry) == []


def test_policies_fitted_at_one_temperature_serve_all(lab, tmp_path):
    def pair(*more):
        args = end_to_end.parse([*command(lab, *more), "--work", str(tmp_path)])
        return end_to_end.Comparison("llama", lab / "pair", SHAPES["llama"], args, float("inf"))

    own, shared = pair(), pair("--fitted-at", "0")
    assert [own.chosen(t).name for t in (0.0, 1.0)] == ["T0", "T1"]
    assert [shared.chosen(t).name for t in (0.0, 1.0)] == ["T0", "T0"]
    assert (own.fitted, shared.fitted) == ([0.0, 1.0], [0.0])


def test_runs_of_another_device_are_not_mixed(lab, tmp_path):
    work = tmp_path / "llama"
    work.mkdir()
    table = CostTable.constant(call=1.0, rest=1.0, device="another card")
    table.save(work / "costs.json")
    with pytest.raises(ValueError, match="another card"):
        end_to_end.main([*command(lab, "--stages", "measure"), "--work", str(tmp_path)], SHAPES)


def test_prompts_are_needed_to_measure():
    with pytest.raises(SystemExit):
        end_to_end.parse(["--stages", "measure"])
