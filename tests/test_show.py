"""What `radar show` notes of a generation is what the decoder did, and what it draws is what it noted."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.engine.fallback import Fallback
from radar.errors import UsageError
from radar.metrics import Round, summarize
from radar.tools.prompts import PromptLine, encode_prompt
from radar.tools.show.page import page, page_data
from radar.tools.show.palette import DARK, LIGHT, step
from radar.tools.show.picture import picture
from radar.tools.show.pieces import pieces, token_text
from radar.tools.show.trace import Trace, TracedRound, trace

QUESTION = "Omar saves $12 a week. After 9 weeks he spends $45. How much money does he have then?"
POLICIES = {"trained": None, "threshold": Threshold(0.3), "deepest": FixedDepth(16)}


@pytest.fixture(scope="module")
def decoder():
    return RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, engine="eager", fallback=False, max_length=512
    )


@pytest.fixture(scope="module")
def prompt(decoder):
    return encode_prompt(PromptLine(QUESTION, chat=True), decoder.tokenizer)


@pytest.fixture(scope="module", params=POLICIES)
def traced(request, decoder, prompt):
    trained = decoder.policy
    decoder.policy = POLICIES[request.param] or trained
    options = {"max_new_tokens": 40}
    yield trace(decoder, prompt, **options), decoder, options
    decoder.policy = trained


def test_a_trace_is_the_generation(traced, prompt):
    seen, decoder, options = traced
    plain = decoder.generate(prompt, **options)
    assert (seen.token_ids, seen.text, seen.finish_reason) == (plain.token_ids, plain.text, plain.finish_reason)
    assert seen.prompt_ids == prompt
    facts = [(item.round.num_draft_calls, item.round.accept_length, item.round.tokens) for item in seen.rounds]
    again = [(item.num_draft_calls, item.accept_length, item.tokens) for item in decoder.rounds(prompt, **options)]
    assert facts == again
    assert seen.metrics.stop_histogram == plain.metrics.stop_histogram


def test_a_sampled_trace_is_the_generation(decoder, prompt):
    options = {"max_new_tokens": 24, "sampling": SamplingParams(temperature=0.9, seed=3)}
    assert trace(decoder, prompt, **options).token_ids == decoder.generate(prompt, **options).token_ids


def test_the_nodes_are_the_rounds(traced):
    """The accepted path is the text, what was verified is the best of all, no child is likelier than its parent."""
    seen, decoder, _ = traced
    before = None
    for item in seen.rounds:
        assert item.root == before
        before = item.target_token
        if item.round.is_prefill:
            assert (item.calls, item.nodes) == ([], [])
            continue
        path = [node for node in item.nodes if node.accepted]
        text = [*(node.token for node in path), item.target_token]
        assert len(path) == item.round.accept_length
        assert text[: len(item.round.tokens)] == item.round.tokens
        assert all(node.verified for node in path)
        above = [-1, *(item.nodes.index(node) for node in path)]
        assert [node.parent for node in path] == above[:-1]

        verified = [node.score for node in item.nodes if node.verified]
        assert len(verified) == item.round.num_draft_tokens
        assert min(verified) >= max((node.score for node in item.nodes if not node.verified), default=-math.inf)
        for index, node in enumerate(item.nodes):
            parent = item.nodes[node.parent] if node.parent >= 0 else None
            assert node.parent < index
            assert parent is None or (parent.score >= node.score and parent.expanded)
        assert len({(node.parent, node.token) for node in item.nodes}) == len(item.nodes)
        assert sum(node.expanded for node in item.nodes) == len(item.calls) * decoder.tree.tree_top_k


def test_the_calls_are_the_policys_decisions(traced):
    """Every call but the last was followed by another; what the page shows of a decision agrees with it."""
    seen, decoder, _ = traced
    k, most = decoder.tree.tree_top_k, decoder.tree.max_calls
    for item in seen.rounds[1:]:
        *earlier, last = item.calls
        assert [call.num_candidates for call in item.calls] == [k, *[k * k] * len(earlier)]
        assert [call.asked for call in item.calls] == [number < most for number in range(1, len(item.calls) + 1)]
        depth, levels = {-1: 0}, {}
        for index, node in enumerate(item.nodes):
            depth[index] = depth[node.parent] + 1
            levels.setdefault(depth[index], []).append(node)
        for number, call in enumerate(item.calls, start=1):
            mass = sum(math.exp(node.score) for node in levels[number] if node.expanded)
            assert call.mass == pytest.approx(mass, rel=1e-5)
        if isinstance(seen.policy, Threshold):
            assert all(call.mass >= seen.policy.mass for call in earlier)
            assert last.mass < seen.policy.mass or not last.asked
        elif isinstance(seen.policy, FixedDepth):
            assert len(item.calls) == seen.policy.calls
            assert last.go_on is None
        else:
            assert all(call.go_on >= 0.5 for call in earlier)
            assert last.go_on < 0.5 if last.asked else last.go_on is None


def test_plain_steps_have_no_tree(prompt, monkeypatch):
    monkeypatch.setattr(Fallback, "drafts", False)
    decoder = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, engine="eager", max_length=256)
    seen = trace(decoder, prompt, max_new_tokens=4)
    assert [(item.calls, item.nodes) for item in seen.rounds] == 4 * [([], [])]
    assert [item.root for item in seen.rounds] == [None, *seen.token_ids[:-1]]
    kinds = [item["kind"] for item in page_data(seen, decoder.tokenizer, about={})["rounds"]]
    assert kinds == ["prompt", "plain", "plain", "plain"]


def test_a_text_of_half_a_character_is_drawn(decoder):
    part = decoder.tokenizer("🙂", add_special_tokens=False)["input_ids"][0]
    only = TracedRound(Round([part], is_prefill=True), None, [], [], part)
    text = decoder.tokenizer.decode([part])
    seen = Trace([part], [only], decoder.policy, text, "length", summarize([only.round], 0.0))
    for drawn in (
        picture(seen, decoder.tokenizer, command=""),
        picture(replace(seen, prompt_ids=[]), Mute(), command=""),
    ):
        assert ElementTree.fromstring(drawn).get("width") == "610"


class Mute:
    """A tokenizer whose tokens have no text."""

    all_special_ids = ()

    def decode(self, ids, **options):
        return ""


def test_what_cannot_be_watched_is_refused(decoder, prompt):
    with pytest.raises(UsageError, match="eager"):
        trace(AutoregressiveDecoder(decoder.model, max_length=256), prompt, max_new_tokens=2)
    with pytest.raises(UsageError, match="max_new_tokens"):
        trace(decoder, prompt, max_new_tokens=0)


@pytest.mark.parametrize(
    "text",
    ["def f(x):\n\treturn x  # naïve\n", "漢字 and 🙂🙃, then é", "\n\n    ", "a<|end|>b<|user|>", "<|end|>", "�x"],
)
def test_pieces_add_up_to_the_text(decoder, text):
    tokenizer = decoder.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for end in range(len(ids) + 1):  # a text may end inside a character
        found = pieces(tokenizer, ids[:end])
        assert len(found) == end
        assert "".join(p.text for p in found if not p.is_special) == tokenizer.decode(
            ids[:end], skip_special_tokens=True
        )
    assert [p.is_special for p in found] == [token in tokenizer.all_special_ids for token in ids]


def test_a_character_belongs_to_the_last_of_its_tokens(decoder):
    ids = decoder.tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    found = pieces(decoder.tokenizer, [*ids, *ids])
    assert [p.text for p in found] == 2 * [*[""] * (len(ids) - 1), "🙂"]


def test_a_tokens_own_text(decoder):
    tokenizer = decoder.tokenizer
    for text in (" return", "\n", "<|end|>", "x"):
        (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert token_text(tokenizer, token) == text
    part = tokenizer("🙂", add_special_tokens=False)["input_ids"][0]
    assert token_text(tokenizer, part) == tokenizer.convert_ids_to_tokens(part)


def embedded_data(text):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]


def test_the_page_holds_the_trace(traced):
    seen, decoder, _ = traced
    data = json.loads(embedded_data(page(seen, decoder.tokenizer, about={"target": "a pair"})))
    assert data == json.loads(json.dumps(page_data(seen, decoder.tokenizer, about={"target": "a pair"})))
    assert data["figures"]["tokens"] == len(seen.token_ids)
    assert data["figures"]["rounds"] == seen.metrics.num_spec_steps
    assert data["policy"]["mass"] == getattr(seen.policy, "mass", None)
    texts = [token for item in data["rounds"] for token in item["tokens"]]
    assert "".join(text for text, special in texts if not special) == seen.text
    for drawn, item in zip(data["rounds"], seen.rounds, strict=True):
        assert [call["asked"] for call in drawn["calls"]] == [call.asked for call in item.calls]
        nodes = drawn["nodes"]
        assert (nodes["token"], nodes["parent"]) == ([n.token for n in item.nodes], [n.parent for n in item.nodes])
        assert nodes["state"] == [2 if n.accepted else 1 if n.verified else 0 for n in item.nodes]
        assert nodes["score"] == pytest.approx([n.score for n in item.nodes], abs=5e-4)
        assert all(str(token) in data["names"] for token in [*nodes["token"], item.target_token])


def test_a_page_is_small():
    """256 rounds with trees as large as a GPU's stay below 2 MB."""
    large = RadarDecoder.from_pretrained(
        device="cpu", tree=TreeConfig(), engine="eager", fallback=False, max_length=256
    )
    seen = trace(large, "import os\n", max_new_tokens=32)
    size = len(page(seen, large.tokenizer, about={}).encode())
    assert size / len(seen.rounds) * 256 < 2e6


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart_and_read_on(scheme):
    away = [abs(luminance(colour) - luminance(scheme.paper)) for colour in scheme.steps]
    assert away == sorted(away), "a deeper step is farther from the paper, also without colours"
    assert all(contrast(scheme.ink, colour) >= 4.5 for colour in (*scheme.steps, scheme.paper))
    assert all(contrast(scheme.paper, colour) >= 4.5 for colour in (scheme.quiet, scheme.accent))
    assert [step(count) for count in (1, 2, 8, 17)] == [0, 1, 7, 7]
    assert len(scheme.steps) == 8


def test_a_picture_has_every_round_and_no_script(traced):
    seen, decoder, _ = traced
    root = ElementTree.fromstring(picture(seen, decoder.tokenizer, command="radar show <\x1bx> --chat"))
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert set(names) == {"svg", "title", "desc", "style", "rect", "text", "path"}
    desc = next(element for element in root.iter() if element.tag.endswith("desc"))
    assert seen.text in desc.text
    assert desc.text.endswith("Made by: radar show <\ufffdx> --chat")
    drawn = "".join("".join(element.itertext()) for element in root.iter() if element.get("textLength"))
    assert "".join(drawn.split()).startswith("".join(QUESTION.split()))
    assert "".join(seen.text.split()) in "".join(drawn.split())
