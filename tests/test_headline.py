"""The comparison's figures, by hand; and those of the repository's files."""

import json
import lzma
import math

import pytest
from measured_runs import decoded, peer, replayed, run, write_results

from bench import headline, tables
from bench.headline import Found, summarise
from bench.runs import AUTOREGRESSIVE, Kept

NOTHING = Kept([], [], [])


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = write_results(tmp_path_factory.mktemp("results"))
    assert headline.main(["--results", str(folder)]) == 0
    return json.loads((folder / "end_to_end" / "summary.json").read_text())


def test_ratios_are_of_all_cells(summary):
    """By replay every cell is alike; in decoding one task of four is 4 / 3 as fast."""
    for at in ("t0", "t1"):
        assert summary[f"radar_over_eagle3_{at}"] == pytest.approx(5 / 4)
        assert summary[f"radar_over_best_fixed_hindsight_{at}"] == pytest.approx(4.5 / 4)
        assert summary[f"radar_over_published_{at}"] == pytest.approx(4.4 / 4)
        assert summary[f"radar_over_eagle3_{at}_decoded"] == pytest.approx(5 / 4 * (4 / 3) ** 0.25, abs=1e-6)
    assert (summary["radar_over_eagle3_t0_n_cells"], summary["radar_over_eagle3_t0_n_prompts"]) == (8, 20)
    assert (summary["radar_over_threshold_t0_decoded_n_cells"], summary["radar_over_published_t0_decoded_n_cells"]) == (
        8, 4
    )  # fmt: skip
    assert summary["draft_calls_change"] == pytest.approx(-0.25)
    assert summary["acceptance_change"] == 0
    assert (summary["radar_over_ar_min"], summary["radar_over_ar_max"]) == pytest.approx((3.0, 4.0))
    assert (summary["texts_compared"], summary["texts_identical"]) == (40, 40)


def test_the_way_to_an_oracle(summary):
    """In speeds over the best fixed setting: 4.5 / 4, 4.5 / 3.5 and 4.5 / 3 of itself."""
    assert summary["oracle_gap_closed"] == pytest.approx((4.5 / 4 - 1) / (4.5 / 3.5 - 1))
    assert summary["oracle_gap_closed_hindsight_t0"] == pytest.approx((4.5 / 4 - 1) / (4.5 / 3 - 1))


def test_a_method_of_fewer_shapes_is_not_called_the_fastest(summary):
    """Sixteen beams are faster, on one of two shapes."""
    assert (summary["fastest_t0"], summary["fastest_t1"]) == ("radar", "radar")
    faster = [one | {"method": "ddd", "seconds": 3.95} for one in replayed("llama") if one["method"] == "ddd"]
    others = [one for one in replayed("llama") if one["method"] not in ("ddd", "radar_16")]
    assert summarise(Found(NOTHING, others + faster, []))["fastest_t0"] == "ddd"


def test_peers_are_judged_by_their_texts(summary):
    """Twelve texts of 60 tokens in 8 seconds each; several rows by what all of them took."""
    per_task = [8 / 4, 8 / 4, 8 / 4, 8 / 3]
    assert summary["radar_over_vllm_best_b1"] == pytest.approx(math.prod(per_task) ** 0.25, abs=1e-6)
    assert summary["radar_over_generate_static"] == pytest.approx(math.prod(per_task) ** 0.25 * 20 / 8, abs=1e-6)
    assert summary["radar_over_sglang_best_b1"] == pytest.approx(math.prod(per_task) ** 0.25, abs=1e-6)
    assert summary["radar_over_vllm_best_b8"] == pytest.approx(4000 / 2 / 800)
    assert summary["radar_over_sglang_best_b8"] == pytest.approx(4000 / 2 / 48, abs=1e-3)
    assert "radar_over_generate_static_b8" not in summary


def test_of_several_turns_the_median_counts():
    """Of ours 1, 2 and 8 times 1,000 tokens a second, of a peer 500, 800 and 900."""
    turns = [
        {"pair": "llama", "temperature": 0.0, "method": "radar", "rows": 8, "turn": turn, "tokens": 4000,
         "seconds": 4 / speed, "texts": ["a", "b"]} for turn, speed in enumerate((1, 8, 2))
    ]  # fmt: skip
    found = Found(Kept([], turns, []), [], [peer("vllm 0.26.0", 3, 8, speed) for speed in (900.0, 500.0, 800.0)])
    figures = summarise(found)
    assert figures["radar_over_vllm_best_b8"] == pytest.approx(2000 / 800)
    assert (figures["texts_compared"], figures["texts_identical"]) == (2, 2)
    turns[1]["texts"] = ["a", "c"]
    assert summarise(found)["texts_identical"] == 1


def test_a_laboratory_pair_is_told_apart(tmp_path):
    """Its figures have a name of their own, and change no other's."""
    folder = write_results(tmp_path)
    before = json.loads(headline.rendered(folder))
    for name, runs in (("end_to_end", decoded("laboratory")), ("replay", replayed("laboratory"))):
        file = folder / name / "released_runs.jsonl.xz"
        slower = [one | {"seconds": 2 * one["seconds"]} if one["method"] == "radar" else one for one in runs]
        lines = lzma.decompress(file.read_bytes()).decode().splitlines() + [json.dumps(one) for one in slower]
        file.write_bytes(lzma.compress("\n".join(lines).encode()))
    after = json.loads(headline.rendered(folder))
    own = {key.removeprefix("laboratory_"): one for key, one in after.items() if key.startswith("laboratory_")}
    assert {key: one for key, one in after.items() if not key.startswith("laboratory_")} == before
    assert own["radar_over_eagle3_t0"] == pytest.approx(before["radar_over_eagle3_t0"] / 2)
    assert not [key for key in own if "vllm" in key]


def test_a_peers_tokens_are_its_own_where_it_tells_them():
    runs = decoded()
    told = peer("vllm 0.26.0", 3, 1, 7.5)
    for row in told["rows"]:
        row["tokens"] = 30
    found = Found(Kept(runs, [], []), [], [told | {"tokens": 360}])
    assert {one["tokens"] for one in headline.peer_runs(found)} == {30}
    fewer = Found(Kept(runs, [], []), [], [peer("vllm 0.26.0", 3, 1, 7.5) | {"tokens": 360}])
    assert {one["tokens"] for one in headline.peer_runs(fewer)} == {30}  # half of what plain decoding wrote


def test_replay_is_judged_by_the_rounds_of_the_same_prompts():
    """Without the prompt's pass and its token; a prompt that was not decoded counts on neither side."""
    was = [run("radar", 0, 41, 4.5), run("eagle3", 0, 61, 8.5), run(AUTOREGRESSIVE, 0, 61, 20.0)]
    said = [run("radar", 0, 126, 1.0), run("eagle3", 0, 100, 1.0), run("radar", 1, 999, 1.0), run("eagle3", 1, 1, 1.0)]
    own = [one | {"seconds": one["seconds"] / 3} for one in said[:1]] + said[1:2]
    figures = summarise(Found(Kept(was, [], []), said, [], own))
    measured = (40 / 4.0) / (60 / 8.0)
    assert figures["replay_small_error_a"] == pytest.approx(1.26 / measured - 1)
    assert figures["replay_small_error"] == pytest.approx(abs(1.26 / measured - 1))
    assert figures["replay_error_a"] == figures["replay_error"] == pytest.approx(3 * 1.26 / measured - 1)
    assert (figures["replayed_compared"], figures["replayed_identical"]) == (2, 2)
    fewer = Found(Kept(was, [], []), said, [], [own[0] | {"calls": own[0]["calls"] - 1}, own[1]])
    assert summarise(fewer)["replayed_identical"] == 1


def test_replay_of_a_pairs_own_rounds_is_told_apart(tmp_path):
    """It is in the same file, and judges replay alone."""
    folder = write_results(tmp_path)
    before = json.loads(headline.rendered(folder))
    file = folder / "replay" / "released_runs.jsonl.xz"
    own = [one | {"pair": one["pair"] + "_own", "seconds": 5 * one["seconds"]} for one in replayed("llama")
           if one["method"] in ("radar", "eagle3") and one["prompt"] < 3]  # fmt: skip
    lines = lzma.decompress(file.read_bytes()).decode().splitlines() + [json.dumps(one) for one in own]
    file.write_bytes(lzma.compress("\n".join(lines).encode()))
    after = json.loads(headline.rendered(folder))
    assert after.keys() - before.keys() == {
        "replay_error",
        "replay_error_llama",
        "replayed_compared",
        "replayed_identical",
    }
    assert {key: after[key] for key in before} == before


def test_what_was_not_measured_is_not_there(tmp_path):
    assert summarise(headline.read(tmp_path)) == {}
    only = summarise(Found(Kept(decoded(), [], []), [], []))
    assert not {"replay_error", "radar_over_eagle3_t0", "oracle_gap_closed", "radar_over_vllm_best_b1"} & only.keys()
    assert only["radar_over_ar_min"] == pytest.approx(3.0)


def test_bounds_hold_what_they_bound():
    """Prompts that differ: the interval is no point, and the same draws count for both parts of a share."""
    runs = replayed("llama", prompts=8)
    for one in runs:
        one["seconds"] *= 1 + 0.1 * (one["prompt"] % 3) * (one["method"] != "radar")
    figures = summarise(Found(NOTHING, runs, []))
    for key in ("radar_over_eagle3_t0", "oracle_gap_closed", "oracle_gap_closed_hindsight_t0"):
        assert figures[f"{key}_low"] < figures[key] < figures[f"{key}_high"]


def test_the_last_of_two_decodings_counts_and_replay_says_one_thing(tmp_path):
    folder = write_results(tmp_path)
    for name, method in (("end_to_end", "radar"), ("replay", "eagle3")):
        file = folder / name / "released_runs.jsonl.xz"
        lines = lzma.decompress(file.read_bytes()).decode().splitlines()
        again = next(one for one in map(json.loads, lines) if one.get("method") == method)
        file.write_bytes(lzma.compress("\n".join([*lines, json.dumps(again | {"seconds": 99.0})]).encode()))
    with pytest.raises(ValueError, match=r"two things of .*eagle3"):
        headline.read(folder)
    found = headline.kept(folder / headline.DECODED)
    assert [one["seconds"] for one in found.alone if one["seconds"] > 20] == [99.0]
    assert len(found.alone) == len(decoded()) + 2 * 4 * 2 * 4


def test_the_repositorys_summary_is_that_of_its_files():
    there = (tables.RESULTS / headline.DECODED).is_file() or (tables.RESULTS / headline.REPLAYED).is_file()
    file = tables.RESULTS / headline.SUMMARY
    assert file.is_file() == there
    if there:
        made = json.loads(headline.rendered())
        assert json.loads(file.read_text()) == {
            name: pytest.approx(one, abs=2e-6) if isinstance(one, float) else one for name, one in made.items()
        }
