"""Parts of the server that need no model: stop strings, tool calls, back-pressure, messages of errors."""

import asyncio
import gc
import json
import logging
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from radar.metrics import Round, TokenLogprob
from radar.serve.admission import Admission
from radar.serve.errors import ApiError, api_error
from radar.serve.jsontext import dumps
from radar.serve.logprobs import chat_form, completion_form
from radar.serve.logs import JsonFormatter
from radar.serve.openai import ChatRequest, CompletionRequest
from radar.serve.stops import StopFilter
from radar.serve.texts import ServedText
from radar.serve.token_names import TokenNames
from radar.serve.tool_calls import ToolCallParser
from radar.tools import interpreter
from radar.tools.interpreter import set_for_engine

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'


@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_text_wherever_pieces_end(pieces, stops):
    text = "".join(pieces)
    filter_ = StopFilter(stops)
    out = "".join(filter_.push(piece) for piece in pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    assert filter_.found == bool(places)
    if not places:
        assert out + filter_.finish() == text
    else:  # of two strings that one piece ends the first counts, though the other may end first
        assert out == text[: len(out)]
        assert len(out) >= min(places)
        assert any(text.startswith(stop, len(out)) for stop in stops)
        assert not any(stop in out for stop in stops)


def test_what_a_stop_string_may_begin_in_is_held_back():
    filter_ = StopFilter(["</s>"])
    assert [filter_.push(one) for one in ("a<", "/", "s", "b</s", ">c", "d")] == ["a", "", "", "</sb", "", ""]
    assert filter_.found


def parse(pieces):
    parser = ToolCallParser()
    text = "".join(parser.push(piece) for piece in pieces)
    return text + parser.finish(), parser.calls


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_calls_are_found_in_any_pieces(size):
    whole = f"First.\n{CALL}\n{CALL} then < and <tool"
    text, calls = parse([whole[place : place + size] for place in range(0, len(whole), size)])
    assert text == "First.\n\n then < and <tool"
    assert [call["index"] for call in calls] == [0, 1]
    assert {call["function"]["name"] for call in calls} == {"add"}
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1, "b": "é"}
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not JSON</tool_call>!",
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}',
        "<tool_call>" + "[" * 9000 + "</tool_call>",
        "<tool_call",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert parse(text) == (text, [])
    assert parse([text]) == (text, [])


def test_room_is_for_rows_and_those_that_wait():
    admission = Admission(2, 1)
    with admission.admitted(2) as ended, admission.admitted(1):
        with pytest.raises(ApiError, match="3 texts are under way") as refused, admission.admitted(1):
            pass
        assert refused.value.status_code == 429
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        assert not asyncio.run(admission.idle(0.01))
        ended()
        ended()
        with admission.admitted(2), pytest.raises(ApiError, match="3 texts"), admission.admitted(1):
            pass
    with pytest.raises(ApiError, match="at most 3 fit"), admission.admitted(4):
        pass
    assert admission.count == 0
    assert asyncio.run(admission.idle(5))
    admission.is_closed = True
    with pytest.raises(ApiError, match="shutting down"), admission.admitted(1):
        pass
    with pytest.raises(ApiError, match="shutting down"):
        admission.check_open()


def test_what_is_refused_does_not_shorten_the_wait():
    admission = Admission(1, 0)
    before = admission._seconds = 30.0
    for _ in range(50):
        with pytest.raises(KeyError), admission.admitted(1):
            raise KeyError
    assert admission._seconds == before
    with admission.admitted(1) as ended:
        ended()
    assert admission._seconds < before


def test_errors_tell_a_client_nothing_of_the_inside():
    error = api_error(RuntimeError("a secret"))
    assert error.status_code == 500
    assert b"secret" not in error.response().body


MANY = 1100
KEYS = {f"a{number}": [] for number in range(MANY)}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [-1] * MANY}, {"prompt": [[-1]] * MANY}, {"prompt": [[-1] * MANY]}, {"prompt": [{}] * MANY},
        {"prompt": "x", "stop": [1] * MANY}, {"prompt": "x", "logit_bias": KEYS}, {"prompt": "x"} | KEYS,
        {"prompt": "x", "stream_options": KEYS},
        CHAT | {"messages": [{}] * MANY}, CHAT | {"messages": [{"role": "user", "content": [1] * MANY}]},
        CHAT | {"messages": [{"role": "user", "tool_calls": [1] * MANY}]}, CHAT | {"tools": [1] * MANY},
        CHAT | {"modalities": [1] * MANY}, CHAT | {"chat_template_kwargs": KEYS},
        CHAT | {"tools": [{"type": "function", "function": KEYS}]},
    ],
    ids=lambda body: repr(body)[:60],
)  # fmt: skip
def test_a_body_full_of_mistakes_is_given_up_early(body):
    """They are all collected otherwise, for seconds, in the event loop."""
    with pytest.raises(ValidationError) as refused:
        (ChatRequest if "messages" in body else CompletionRequest).model_validate({"model": "m"} | body)
    assert refused.value.error_count() <= 8


class Bytes:
    """A tokenizer of byte-level names."""

    names = ("", "a", "æ", "Ĺ", "<0x97>", "\ufffd")

    def convert_ids_to_tokens(self, token):
        return self.names[token]

    def decode(self, ids, **options):
        return "a" if ids == [1] else "\ufffd"


def test_parts_of_a_character_have_names_and_bytes():
    names = TokenNames(Bytes())
    assert [names[token] for token in range(1, 6)] == [
        ("a", b"a"), ("bytes:\\xe6", b"\xe6"), ("bytes:\\x97", b"\x97"), ("bytes:\\x97", b"\x97"),
        ("\ufffd", None),
    ]  # fmt: skip
    found = completion_form([TokenLogprob(2, -3.0, [(3, -0.5), (4, -4.0)])], [7], names)
    assert found["top_logprobs"] == [{"bytes:\\x97": -0.5, "bytes:\\xe6": -3.0}]
    assert list(found["top_logprobs"][0])[-1] == found["tokens"][0] == "bytes:\\xe6"
    assert found["text_offset"] == [7]
    assert chat_form([TokenLogprob(2, -3.0, [])], names)["content"][0]["bytes"] == [0xE6]
    never = [TokenLogprob(1, -math.inf, [(2, -math.inf)])]
    assert dumps(chat_form(never, names)).count(b"-9999.0") == 2
    assert dumps(completion_form(never, [0], names)).count(b"-9999.0") == 3


class Says:
    """What `ServedText` needs of a decoder, a model and a text: tokens are bytes."""

    all_special_ids = max_batch_size = 2
    turn = None
    input_ids = ()
    seconds = 0.0

    def __init__(self):
        self.decoder = self.tokenizer = self.request = self

    def decode(self, ids, **options):
        return bytes(ids).decode(errors="replace")


def test_offsets_and_accepted_tokens_are_of_the_text():
    says = Says()
    says.all_special_ids = ()
    text = ServedText(says, says, ["!"])
    piece = text._take(Round(tokens=[*"a日b".encode()], finish_reason=None, accept_length=4))
    assert piece.offsets == [0, 1, 1, 1, 2]
    piece = text._take(Round(tokens=[*b"c!xyz"], finish_reason=None, accept_length=4))
    assert (piece.finish_reason, piece.offsets) == ("stop", [3, 4])
    assert piece.round["accepted"] == 2
    assert text.num_accepted == 6


@pytest.mark.parametrize("stops", [[], ["!"]])
def test_log_probabilities_are_of_the_tokens_of_the_text(stops):
    says, found = Says(), [TokenLogprob(token, -1.0, []) for token in b"abc!xyz"]
    says.all_special_ids = ()
    piece = ServedText(says, says, stops)._take(Round(tokens=[*b"abc!xyz"], logprobs=found))
    kept = 4 if stops else 7
    assert piece.logprobs == found[:kept]
    assert piece.offsets == [*range(kept)]


def test_half_a_character_is_json_all_the_same():
    assert json.loads(dumps({"a": "\ud800é"})) == {"a": "?é"}


def test_a_log_line_is_json():
    record = logging.LogRecord("radar.serve", logging.INFO, "", 0, "request %s", ("a\nb",), None)
    record.fields = {"request_id": "x", "odd": object()}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "request a\nb"
    assert json.loads(line)["request_id"] == "x"


def test_the_interpreter_is_set_for_engines_and_back_behind_the_last(monkeypatch):
    monkeypatch.setattr(interpreter, "_users", 0)  # a replica of another test may have left it set
    gc.unfreeze()
    sys.setswitchinterval(before := 0.005)
    undo, other = set_for_engine(), set_for_engine()
    for last in (undo, other):
        assert sys.getswitchinterval() < before
        assert gc.get_freeze_count() > 1000
        last()
    assert (sys.getswitchinterval(), gc.get_freeze_count()) == (before, 0)
    gc.freeze()  # a program's own
    set_for_engine()()
    assert gc.get_freeze_count() > 1000
    gc.unfreeze()
