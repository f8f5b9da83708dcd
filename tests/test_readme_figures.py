"""The figures in the README, made again from the files that it names. Its table of speeds: tests/test_report.py."""

import json
import re
from pathlib import Path

import pytest

from bench.headline import compared, peer_rates, rate, read

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PEERS = ("generate, static", "sglang", "vllm")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def row(name):
    """A table's row by its first cell: the other cells."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def told(pattern):
    """The numbers of a sentence, as floats; every group is one."""
    (found,) = re.findall(pattern, README)
    return [float(one.replace(",", "")) for one in ([found] if isinstance(found, str) else found)]


def test_many_texts_at_once():
    record, rows = load("batch/h200.json"), [int(one) for one in row("rows")]
    for name, key in (("plain decoding", "plain"), ("RADAR", "radar"), ("a threshold", "threshold")):
        assert row(name) == [f"{record[f'{key}_b{n}_t0']:,.0f}" for n in rows]
    behind = [100 * (1 - record[f"radar_over_threshold_b{n}_t0"]) for n in (2, 4, 8, 16, 32)]
    assert told(r"the embedded network is (\d+) to (\d+) % behind from two rows") == [
        round(min(behind)),
        round(max(behind)),
    ]
    served = record["serve"]
    assert told(r"under (\d+) clients for eight minutes: ([\d,]+) tokens a second") == [
        served["clients"],
        round(served["tokens_per_second"]),
    ]
    assert 480 <= served["seconds"] < 490


def test_eight_queued_texts_at_a_time():
    found = read(RESULTS)
    rates = peer_rates(found)
    peers = [max(one for (name, rows), one in rates.items() if rows == 8 and word in name) for word in PEERS]
    ours = [rate(found, method, 8) for method in ("autoregressive", "eagle3", "threshold", "radar")]
    number = r"([\d,]+)"
    assert told(
        rf"80 queued: plain decoding {number}, `generate` {number}, SGLang {number}, vLLM {number}, EAGLE-3 "
        rf"cut to 64 nodes for all {number}, a threshold {number}, RADAR {number}\."
    ) == [round(one) for one in (ours[0], *peers, *ours[1:])]


def test_what_a_network_adds():
    runs = read(RESULTS).replayed
    added = []
    for pair in ("llama", "vicuna"):
        for temperature in (0.0, 1.0):
            found = compared([run for run in runs if run["pair"] == pair], temperature, "radar", "threshold")
            added.append(round(100 * (found[0].value - 1), 1))
    number = r"(-?[\d.]+)"
    assert told(
        rf"adds {number} and {number} % to a tuned one at Llama-3.1-8B's costs .*, {number} and {number} % at Vicuna"
    ) == pytest.approx(added)


def test_a_released_model():
    record = load("end_to_end/fit_smollm2_h200.json")
    speeds = [
        {line["name"]: line["metrics"]["tokens_per_second"] for line in task["rows"]}
        for task in record["tasks"].values()
    ]
    over = {other: [one["RADAR"] / one[other] for one in speeds] for other in ("autoregressive", "EAGLE-3")}
    minutes, low, high, least, most, answers = told(
        r"[Ii]n (\d+) minutes .* made this model ([\d.]+) to ([\d.]+) times .* by task, ([\d.]+) to ([\d.]+) "
        r"times EAGLE-3; one run, (\d+) answers, all alike"
    )
    assert [low, high] == [round(end(over["autoregressive"]), 1) for end in (min, max)]
    assert [least, most] == [round(end(over["EAGLE-3"]), 2) for end in (min, max)]
    assert minutes == round(record["minutes_taken"])
    assert answers == sum(task["texts"] for task in record["tasks"].values())
    assert all(task["identical"] for task in record["tasks"].values())


def test_parts_of_a_round_and_starts():
    record = load("round/round_h200.json")
    decision, call, whole = told(
        r"A decision costs ([\d.]+) us, a draft call ([\d.]+) ms, a round of eight calls ([\d.]+) ms"
    )
    assert decision == round(record["decision_us"], 1)
    assert whole == round(record["milliseconds"]["fixed8"]["median"], 2)
    assert call == round(load("round/h200.json")["draft_step_ms"], 3)
    starts = {run["compiled before"]: run["start_s"] for run in load("round/starts_h200.json")["runs"]}
    assert told(r"in Triton's cache: (\d+) s and (\d+) s from a loaded model") == [
        round(starts[False]),
        round(starts[True]),
    ]


def test_texts_that_were_compared():
    tasks = load("end_to_end/embedded_tasks_cpu.json")
    found = [task for task in tasks.values() if isinstance(task, dict) and "identical" in task]
    assert all(task["identical"] for task in found)
    assert told(r"; (\d+) prompts of the four tasks gave identical texts") == [
        sum(int(task["settings"]["prompts"].split()[0]) for task in found)
    ]
    for name, number in zip(
        ("bfloat16", "float16"),
        told(r"of (\d+) bf16 texts at Llama-3.1-8B's shapes and of (\d+) in fp16"),
        strict=True,
    ):
        record = load(f"checks/exact_{name}_h200.json")
        assert sum(record["by decoder"].values()) == number == record["of"] * len(record["by decoder"])
        assert not record["parted"]
        assert all(record["logits_bitwise"].values())
