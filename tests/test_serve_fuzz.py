"""Whatever is sent, the server answers with a text or with a 4xx in OpenAI's shape, and holds no row afterwards."""

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import NAME, live, rows_in_use, shared_decoder, wait_until
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from radar.serve.openai import ChatRequest, CompletionRequest
from radar.serve.settings import Limits

PATHS = "/v1/chat/completions", "/v1/completions"
BODIES = {
    PATHS[0]: {"model": NAME, "messages": [{"role": "user", "content": "x"}]},
    PATHS[1]: {"model": NAME, "prompt": "x"},
}
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "unknown"})
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
MANY = settings(FEW, max_examples=150)


@pytest.fixture(scope="module")
def server():
    with live({NAME: shared_decoder()}, limits=Limits(max_tokens=2, max_waiting=200)) as server:
        yield server
        wait_until(lambda: server.admission.count == 0)
        wait_until(lambda: rows_in_use(shared_decoder()) == 0)


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server.url, timeout=120) as web:
        yield web


def check(answer):
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


def send(web, path, body):
    """`json.dumps` writes NaN, infinity and halves of surrogate pairs as JSON's kin do."""
    check(web.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


NUMBERS = st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, 1e-308, float("nan"), float("inf")])
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(["\ud800", "\x00", "", "x" * 3000])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
CHANGES = st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "x"]), VALUES, max_size=4), max_size=3
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("how", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_changed_fields(web, path, how):
    @how
    @given(CHANGES)
    def run(changes):
        send(web, path, BODIES[path] | changes)

    run()


@FEW
@given(MESSAGES)
def test_messages_of_any_kind(web, messages):
    send(web, PATHS[0], BODIES[PATHS[0]] | {"messages": messages})


HALF = json.dumps(BODIES[PATHS[1]] | {"prompt": "a\ud800"}).encode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, HALF,
        b'{"model": "tiny", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
        b'{"model": "tiny", "model": "tiny", "prompt": [[[[1]]]]}',
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_bodies_that_are_no_requests(web, path, data):
    answer = web.post(path, content=data, headers={"content-type": "application/json"})
    check(answer)
    assert answer.status_code == 400
    assert web.post(path, content=data, headers={"content-type": "text/plain"}).status_code == 400


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"temprature": 1}, "temprature", "Unrecognized request argument supplied: temprature"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"echo": True}, "echo", "false"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"stream": "true"}, "stream", "boolean"),
        ({"top_p": float("nan")}, "top_p", "finite"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"prompt": [["x"]]}, "prompt", "integer"),
        ({"prompt": [5000]}, None, "from 0 to 4095"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"temperature": 1e-300}, None, "temperature"),
        ({"logit_bias": {"5000": 1}}, None, "logit_bias"),
        ({"n": 1000}, "n", "128"),
    ],
    ids=str,
)
def test_a_refusal_names_what_was_wrong(web, change, param, says):
    data = json.dumps(BODIES[PATHS[1]] | change)
    answer = web.post(PATHS[1], content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "max_length"])
def test_no_client_brings_a_template_of_its_own(web, name):
    """It is a program that would run here."""
    given = {"chat_template_kwargs": {name: "x"}}
    answer = web.post(PATHS[0], json=BODIES[PATHS[0]] | given)
    assert answer.status_code == 400
    assert f"{name} is no variable of the template" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "param"), [(PATHS[0], "messages"), (PATHS[1], "prompt")])
def test_what_does_not_fit_is_told_as_openai_does(web, path, param):
    text = "x y " * 400
    body = BODIES[path] | ({"prompt": text} if param == "prompt" else {"messages": [{"role": "user", "content": text}]})
    answer = web.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404), ("GET", PATHS[0], 405), ("GET", "/page/%2e%2e%2fapp.py", 404),
        ("GET", "/v1/models/x", 404),
    ],
)  # fmt: skip
def test_other_paths(web, method, path, status):
    answer = web.request(method, path)
    check(answer)
    assert answer.status_code == status


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_servers_own_description(server, mode, count):
    """Requests that fit it, or break it, and answers that are as it says."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    assert all("422" not in each["responses"] for path in schema.raw_schema["paths"].values() for each in path.values())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 6
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @settings(FEW, max_examples=count)
        @given(operation.as_strategy(generation_mode=mode))
        def run(case):
            case.call_and_validate(checks=CHECKS)

        run()
