"""Tables and plots of the result files."""

import pytest
from measured_runs import decoded, write_results

from bench import plots, report, sections, tables
from bench.headline import Found, read
from bench.runs import Kept

README = "a\n<!-- table: bench.report -->\nold\n<!-- end -->\nb\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


def section(text, title):
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_report_by_hand(results):
    text = sections.report(results)
    assert text.count("`python -m bench.released --model smol`: a card, torch 2, commit abcdef1.") == 1
    methods = section(text, "Methods").split("Temperature 1")[0].splitlines()
    names = [line.split(" | ")[0].strip("| ") for line in methods if line.startswith("| ")][2:]
    assert names == [
        "oracle that knows what is accepted (a bound)", "RADAR, sixteen beams", "RADAR", "threshold",
        "RADAR as published", "best fixed setting of each task, in hindsight (a bound)", "DDD", "best fixed setting",
        "EAGLE-3, 8 calls, 60 nodes",
    ]  # fmt: skip
    assert "| RADAR | 1.250 (1.250 to 1.250) | 6.00 | 100 | 15.50 | 8 |" in methods
    assert "| RADAR, sixteen beams | 1.282 (1.282 to 1.282) | 8.00 | 60 | 15.50 | 4 |" in methods
    assert "oracle that knows the target's probabilities" in section(text, "Methods").split("Temperature 1")[1]
    ratio = "1.250 (1.250 to 1.250)"
    assert f"| Qwen3-8B | MBPP | {ratio} | {ratio} | 1.667 (1.667 to 1.667) |" in section(text, "By task and shape")
    speeds = section(text, "Tokens per second")
    assert "| Llama-3.1-8B | 0 | 1 | 5 | 12 | 13 | 15 | 14 | 16 |" in speeds  # a fourth of 60 / 3, three of 60 / 4
    assert "| Llama-3.1-8B | 0 | 8 | 1000 |  |  |  |  | 2000 |" in speeds
    peers = section(text, "Other libraries")
    assert "| vllm 0.26.0, 3 drafts | 1 | 8 | 2.00 | 2.149 (2.149 to 2.149) | 100 |  | 30 |" in peers
    assert "| vllm 0.26.0, 3 drafts | 8 | 800 | 2.00 | 2.500 | 100 |  | 30 |" in peers
    assert "| sglang 0.5.16, tree of 7 x 10 | 1 | 6 |" in peers
    assert "| RADAR | 1 | 16 | 15.00 |  | 500 |  |  |" in peers
    alphas = section(text, "The published reward by its alpha")
    assert "| RADAR as published, alpha 0.1 | 1.064 (1.064 to 1.064) |" in alphas
    assert "A policy elsewhere.\n\n|  | b |\n| --- | --- |\n| a | 1.010 |" in section(text, "Training and tuning")
    assert "| Llama-3.1-8B | 2,048 | 4.00 | 5.00/5.50 |" in text
    assert "| Llama-3.1-8B | 10 | 2,048 | 0.500 | 0.250 | 3.0 |" in text
    assert "| 1,024 tokens | decisions | 0.300 | 5.4% |" in text


def test_a_section_without_its_data_is_left_out(tmp_path):
    assert sections.report(tmp_path) == "# Report\n"
    assert sections.readme_table(tmp_path) == ""
    write_results(tmp_path)
    for name in ("end_to_end/peers_h200.json", "replay/released_choices.json", "replay/released_runs.jsonl.xz"):
        (tmp_path / name).unlink()
    titles = [line for line in sections.report(tmp_path).splitlines() if line.startswith("## ")]
    assert titles == ["## What was measured", "## By task and shape", "## Tokens per second",
                      "## What the card takes by rows", "## A round by parts"]  # fmt: skip


def test_speeds_are_of_prompts_that_all_methods_decoded():
    """RADAR's turn at the third prompt never came: the others' do not count either."""
    runs = [one for one in decoded() if (one["method"], one["prompt"]) != ("radar", 2)]
    slow = [one | {"seconds": 1e6} if one["prompt"] == 2 else one for one in runs]
    found = Found(Kept(slow, [], []), [], [])
    assert sections.speed(found, "llama", 0.0, "eagle3") == pytest.approx(12.0)
    assert sections.speed(found, "qwen", 0.0, "eagle3") is None


def test_readmes_table_lies_between_its_marks(results):
    table = sections.readme_table(results)
    ratio = "1.343 (1.343 to 1.343)"
    assert f"| Llama-3.1-8B | 5 | 3 | 8 | 6 | 12 | 15 | 16 | {ratio} | {ratio} |" in table
    assert f"| Qwen3-8B | 5 | - | - | - | 12 | 15 | 16 | {ratio} | {ratio} |" in table
    text = report.with_table(README, table)
    assert text == f"a\n<!-- table: bench.report -->\n{table}<!-- end -->\nb\n"
    assert report.with_table(text, table) == text
    with pytest.raises(ValueError, match="0 places"):
        report.with_table("a\n", table)
    with pytest.raises(ValueError, match="2 places"):
        report.with_table(README + README, table)


def test_the_command_writes_all_of_it(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    drawn = report.main(["--results", str(results), "--readme", str(readme)]) == 0
    assert (results / "report.md").read_text() == sections.report(results)
    assert readme.read_text() == report.with_table(README, sections.readme_table(results))
    assert drawn == (results / "methods.png").is_file() == (results / "card.png").is_file()
    assert drawn or "pip install" in capsys.readouterr().err


def test_plots_show_the_runs(results):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = plots.draw(read(results), results, pyplot)
    above, *_ = figures["methods.png"].axes
    names = [label.get_text() for label in above.get_yticklabels()]
    values = [line.get_xdata()[0] for line in above.lines if line.get_marker() == "o"]
    assert dict(zip(names, values, strict=False))["RADAR"] == pytest.approx(1.25)
    assert "RADAR, sixteen beams, 4 of 8 cells" in names
    verify, others, stops, nodes = figures["card.png"].axes
    assert list(verify.lines[0].get_ydata()) == [4.0, 5.0]
    assert sorted(verify.lines[1].get_ydata()) == [4.0, 5.0, 5.5]  # the repeat too
    assert {round(bar.get_width()) for bar in others.patches} >= {800, 2000}
    assert [line.get_ydata()[1] for line in stops.lines if len(line.get_ydata()) == 2][:1] == [100.0]
    assert 100 in {round(one) for line in nodes.lines for one in line.get_ydata()}
    assert plots.draw(Found(Kept([], [], []), [], []), results, pyplot) == {}


def test_the_repositorys_report_and_readme_are_those_of_its_files():
    """`python -m bench.report` would change nothing."""
    assert (tables.RESULTS / "report.md").read_text(encoding="utf8") == sections.report()
    readme = report.README.read_text(encoding="utf8")
    assert report.with_table(readme, sections.readme_table()) == readme


def test_every_plot_that_the_report_shows_is_there():
    text = (tables.RESULTS / "report.md").read_text(encoding="utf8")
    shown = {name for name in ("methods.png", "card.png") if f"({name})" in text}
    assert {file.name for file in tables.RESULTS.glob("*.png")} == shown
