"""The page of `radar show` in a real browser: it draws what it holds, obeys pointer and keys, and runs nothing else."""

import json
import time

import pytest
import torch
from browser import COMMAND, REASON, Browser

from radar import RadarDecoder
from radar.tools.prompts import PromptLine, encode_prompt
from radar.tools.show.page import page, page_data
from radar.tools.show.trace import trace

pytestmark = pytest.mark.skipif(COMMAND is None, reason=REASON)
QUESTION = "Omar saves $12 a week. After 9 weeks he spends $45. How much money does he have then?"
HOSTILE = "</script><img src=x onerror=window.hit=1>", "<!--<script>", "\u2028'\"&lt;\x00\r"


class Hostile:
    """A tokenizer two thirds of whose tokens are markup."""

    def __init__(self, tokenizer):
        self.tokenizer, self.all_special_ids = tokenizer, tokenizer.all_special_ids

    def decode(self, ids, **options):
        return "".join(
            HOSTILE[token % 4] if token % 4 < 3 else self.tokenizer.decode([token], **options) for token in ids
        )

    def convert_ids_to_tokens(self, token):
        return self.tokenizer.convert_ids_to_tokens(token)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def drawn():
    """(trace, tokenizer) of a text of many kinds of rounds."""
    decoder = RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, engine="eager", fallback=False, max_length=256
    )
    prompt = encode_prompt(PromptLine(QUESTION, chat=True), decoder.tokenizer)
    return trace(decoder, prompt, max_new_tokens=48), decoder.tokenizer


@pytest.fixture
def shown(browser, drawn, tmp_path):
    """The page, open; its data."""
    seen, tokenizer = drawn
    return show(browser, tmp_path, seen, tokenizer)


def show(browser, folder, seen, tokenizer, **about):
    file = folder / "page.html"
    file.write_text(page(seen, tokenizer, about=about), encoding="utf-8", newline="\n")
    browser.open(file.as_uri())
    assert browser.errors == []
    assert browser.requests == [file.as_uri()], "a page loads nothing but itself"
    return page_data(seen, tokenizer, about=about)


def chosen(browser):
    return browser.run("[...document.querySelectorAll('.round')].findIndex(e => e.ariaSelected === 'true')")


def wait(browser, script, value):
    until = time.monotonic() + 60
    while browser.run(script) != value and time.monotonic() < until:
        time.sleep(0.02)
    assert browser.run(script) == value


TITLE = "document.querySelector('#round-title').textContent"


def test_the_page_draws_its_data(browser, drawn, shown):
    seen, _ = drawn
    assert browser.run("document.querySelectorAll('#text .round').length") == len(seen.rounds)
    assert browser.run("document.querySelectorAll('#strip i').length") == len(seen.rounds)
    words = "[...document.querySelectorAll('#text .token:not(.special)')].map(e => e.textContent).join('')"
    assert browser.run(words) == seen.text
    assert browser.run("document.querySelector('#headline').textContent") == (
        f"{len(seen.token_ids)} tokens in {seen.metrics.num_spec_steps} rounds"
    )
    figures = browser.run("[...document.querySelectorAll('#figures dd')].map(e => Number(e.textContent))")
    m = seen.metrics
    assert figures == pytest.approx([m.mean_acceptance_length, m.draft_calls_per_round, m.tokens_per_second], rel=0.02)


def test_every_tree_is_the_rounds(browser, drawn, shown):
    """Nodes by kind, calls and lines of all rounds; no two nodes of a level on one place."""
    seen, _ = drawn
    counts = browser.run(
        "rounds.map((_, index) => { choose(index); const count = (s) => document.querySelectorAll('#tree ' + s).length;"
        "const at = [...document.querySelectorAll('#tree .node')].map(e => e.getAttribute('transform'));"
        "return [count('.node.s2'), count('.node.s1'), count('.node.s0'), count('.node.own'), count('.head'),"
        "  new Set(at).size, at.length, document.querySelectorAll('#calls tbody tr').length,"
        "  getComputedStyle(document.querySelector('#tree')).display]; })"
    )
    for item, count in zip(seen.rounds, counts, strict=True):
        if not item.calls:
            assert count[-1] == "none"
            continue
        states = [2 if node.accepted else int(node.verified) for node in item.nodes]
        last = max((index for index, state in enumerate(states) if state == 2), default=-1)
        was_drafted = any(node.token == item.target_token and node.parent == last for node in item.nodes)
        total = len(item.nodes) + 1 + (not was_drafted)  # with the root, and the target's own token
        assert count == [
            states.count(2) + 1, states.count(1), states.count(0) - was_drafted, 1, len(item.calls) + 1, total, total,
            len(item.calls), "block",
        ]  # fmt: skip
    assert browser.errors == []


def test_the_story_tells_the_round(browser, drawn, shown):
    seen, _ = drawn
    for index, item in enumerate(seen.rounds):
        story = browser.run(f"choose({index}), document.querySelector('#story').textContent")
        if item.calls:
            assert f"{len(item.calls)} draft call" in story
            assert f"accepted {item.round.accept_length} and" in story
            assert ("left out" in story) == (len(item.round.tokens) <= item.round.accept_length)
            assert "and stopped" in story if item.calls[-1].asked else "limit of 16 calls" in story


def test_pointer_and_keys_choose_rounds(browser, drawn, shown):
    seen, _ = drawn
    longest = max(range(len(seen.rounds)), key=lambda index: seen.rounds[index].round.accept_length)
    assert chosen(browser) == longest
    browser.point("#round-3")
    wait(browser, TITLE, "Round 3")
    assert chosen(browser) == 3
    assert browser.run("document.querySelectorAll('#strip i.on').length") == 1

    browser.point("#round-2", click=True)
    wait(browser, TITLE, "Round 2")
    assert browser.run("document.querySelector('#held').hidden") is False
    browser.point("#round-4")
    time.sleep(0.3)  # longer than a pointer has to rest
    assert chosen(browser) == 2, "a round that is held stays"
    browser.point("#round-5", click=True)
    wait(browser, TITLE, "Round 5")
    assert browser.run("document.querySelector('#held').hidden") is False, "a click on another round holds that one"

    for key, index in (("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 0), ("End", len(seen.rounds) - 1)):
        browser.press(key)
        assert chosen(browser) == index
        assert browser.run("document.activeElement.id") == f"round-{index}"
    browser.press("Escape")
    assert browser.run("document.querySelector('#held').hidden") is True
    browser.point("#next")
    assert browser.run("document.querySelector('#next').disabled") is True
    browser.point("#back", click=True)
    wait(browser, TITLE, f"Round {len(seen.rounds) - 2}")


def test_the_keyboard_alone_reaches_the_rounds(browser, shown):
    browser.run("document.body.focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.getAttribute('role')") == "option"
    before = chosen(browser)
    browser.press("ArrowLeft")
    assert chosen(browser) == before - 1
    names = browser.run("[...document.querySelectorAll('button, [role]')].map(e => e.ariaLabel || e.textContent)")
    assert all(names)


def test_hostile_tokens_are_text(browser, drawn, tmp_path):
    seen, tokenizer = drawn
    data = show(browser, tmp_path, seen, Hostile(tokenizer), **{HOSTILE[0]: HOSTILE[1]})
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.images.length") == 0
    assert browser.run("rounds.forEach((_, index) => choose(index)), window.hit") is None
    assert browser.run("JSON.stringify(data)") == browser.run(f"JSON.stringify({json.dumps(data)})")
    text = browser.run("document.querySelector('#text').textContent")
    assert text.count(HOSTILE[0]) == sum(token % 4 == 0 for token in seen.token_ids)
    assert browser.errors == []


def test_a_script_that_got_in_would_not_run(browser, drawn, tmp_path):
    """The page's own policy, should the escaping ever fail."""
    seen, tokenizer = drawn
    file = tmp_path / "torn.html"
    whole = page(seen, tokenizer, about={})
    file.write_text(
        whole.replace("</body>", "<script>window.hit=1</script><img src=x onerror='hit=1'></body>"), encoding="utf-8"
    )
    browser.open(file.as_uri())
    assert browser.run("window.hit") is None
    assert browser.run("document.images.length") == 1
    assert browser.errors, "and the browser says so"


def test_schemes_and_print(browser, shown):
    paper = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for medium, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        browser.media(medium, prefers_color_scheme=scheme)
        found[medium, scheme] = browser.run(paper)
    browser.media()
    assert found["screen", "light"] == found["print", "dark"] != found["screen", "dark"]
    for width in (1440, 390):
        browser.resize(width, 900)
        assert browser.run("document.documentElement.scrollWidth") <= width, "only the tree scrolls sideways"
    browser.resize(1440, 900)
