"""The server's page in a real browser: it streams by rounds, compares methods, and takes no text for markup."""

import json
import time

import pytest
from browser import COMMAND, REASON, Browser
from live_server import NAME, live, plain_decoder, shared_decoder, wait_until

from radar.serve import ahead

pytestmark = pytest.mark.skipif(COMMAND is None, reason=REASON)
QUESTION = "Write <b>a</b> function to add two numbers"
HOSTILE = "</script><img src=x onerror=window.hit=1><b>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def server():
    with live({NAME: shared_decoder(), f"{NAME}@plain": plain_decoder(2)}) as server:
        yield server


@pytest.fixture
def opened(browser, server):
    browser.open(f"{server.url}/")
    wait(browser, "document.querySelectorAll('#methods input').length", 2)
    return browser


def wait(browser, script, value):
    until = time.monotonic() + 60
    while browser.run(script) != value and time.monotonic() < until:
        time.sleep(0.02)
    assert browser.run(script) == value


def ask(browser, text, **fields):
    for name, value in ({"message": text, "tokens": 16} | fields).items():
        browser.run(f"byId({json.dumps(name)}).value = {json.dumps(str(value))}")
    browser.point("#send", click=True)


ENDED = "document.querySelector('#send').disabled"
TEXTS = "[...document.querySelectorAll('.answer .mono')].map(e => e.textContent)"


def own_text(messages, **options):
    return plain_decoder().generate(messages, max_new_tokens=16, **options).text


def test_it_streams_and_compares(opened, server, monkeypatch):
    monkeypatch.setattr(ahead, "QUIET", 0.001)  # between events there are comments
    browser = opened
    assert browser.run("document.querySelector('h1').textContent") == NAME
    ask(browser, QUESTION, temperature=1, seed=7)
    wait(browser, "document.querySelectorAll('.answer .note')[0]?.textContent.includes('seed 7')", True)
    messages = [{"role": "user", "content": QUESTION}]
    own = own_text(messages, temperature=1.0, seed=7)
    assert browser.run(TEXTS) == [own]
    tokens = browser.run("turns[0].answers[0].tokens")
    rounds = browser.run("turns[0].answers[0].rounds")
    assert tokens <= 16
    assert browser.run("Number(byId('accepted').textContent)") == pytest.approx((tokens - 1) / rounds, abs=0.01)
    assert browser.run("byId('calls').textContent") == "2.00"
    assert browser.run("document.querySelectorAll('.answer .round').length") > 1
    colours = browser.run("[...document.querySelectorAll('.round')].map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) > 1, "rounds of one and of several tokens look alike"

    browser.point("#methods label:nth-of-type(2) input", click=True)
    browser.point("#again", click=True)
    wait(browser, "document.querySelectorAll('.answer .note')[1]?.textContent.includes('the same text as RADAR')", True)
    assert browser.run(TEXTS) == [own, own]
    assert browser.run("[...document.querySelectorAll('h2')].map(e => e.textContent)") == ["RADAR", "plain"]
    assert browser.run("byId('calls').textContent") == "0.00"

    ask(browser, "And three?", temperature=0)
    wait(browser, f"{ENDED} === false && turns[1]?.answers[0]?.whole", True)
    messages += [{"role": "assistant", "content": own}, {"role": "user", "content": "And three?"}]
    assert browser.run(TEXTS)[2] == own_text(messages)

    assert browser.run("document.querySelector('.question b')") is None
    assert browser.run("document.querySelector('.question').textContent") == QUESTION
    assert browser.errors == []
    assert all(url.startswith((server.url, "data:")) for url in browser.requests), "it asks no other site"
    browser.point("#reset", click=True)
    assert browser.run("document.querySelectorAll('.turn').length") == 0


def test_text_that_looks_like_markup_is_text(opened, monkeypatch):
    browser, decoder = opened, shared_decoder()
    monkeypatch.setattr(decoder.tokenizer, "decode", lambda ids, **options: HOSTILE * len(ids))
    ask(browser, HOSTILE)
    wait(browser, f"{ENDED} === false && turns[0]?.answers[0]?.whole", True)
    assert HOSTILE in browser.run(TEXTS)[0]
    assert browser.run("document.images.length + document.querySelectorAll('main script, main b').length") == 0
    assert browser.run("window.hit") is None
    assert browser.errors == []


def test_the_policy_runs_nothing_else(opened):
    browser = opened
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit=1'})),"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hit=1>')"
    )
    assert browser.run("window.hit") is None
    assert browser.errors, "and the browser says so"


def test_stop_ends_the_text_at_the_server(opened, server):
    browser = opened
    browser.run("byId('message').value = 'Count', byId('tokens').value = '240'")
    browser.point("#send", click=True)
    wait(browser, "turns[0]?.answers[0]?.rounds > 0", True)
    browser.point("#stop", click=True)
    wait(browser, f"{ENDED} === false && document.querySelector('.note').textContent.length > 0", True)
    note = browser.run("document.querySelector('.note').textContent")
    assert "stopped" in note or browser.run("turns[0].answers[0].whole")
    wait_until(lambda: server.admission.count == 0)


def test_a_key_is_asked_for(browser):
    with live({NAME: shared_decoder()}, keys=["secret"]) as server:
        browser.open(f"{server.url}/")
        wait(browser, "byId('key-field').hidden", False)
        assert "Incorrect API key" in browser.run("byId('problem').textContent")
        browser.run("byId('key').value = 'secret', byId('key').dispatchEvent(new Event('change'))")
        wait(browser, "byId('model').textContent", NAME)
        assert browser.run("byId('methods').hidden") is True
        ask(browser, "Hello")
        wait(browser, f"{ENDED} === false && turns[0]?.answers[0]?.whole", True)


def test_it_fits_a_phone_and_the_dark(opened, tmp_path):
    browser = opened
    ask(browser, QUESTION)
    wait(browser, f"{ENDED} === false && turns[0]?.answers[0]?.whole", True)
    browser.resize(380, 800)
    assert browser.run("document.documentElement.scrollWidth <= 380") is True
    browser.media(prefers_color_scheme="dark")
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.media(prefers_color_scheme="light")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != dark
    browser.resize(1440, 900)
    browser.screenshot(tmp_path / "page.png")
