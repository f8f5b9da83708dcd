"""The server with OpenAI's own client and with plain HTTP: texts are the decoder's own, and nothing is lost."""

import asyncio
import json

import httpx
import openai
import pytest
from live_server import CHAT, LENGTH, NAME, live, plain_decoder, shared_decoder
from prometheus_client.parser import text_string_to_metric_families

PROMPT = "def fibonacci(n):"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server():
    with live({NAME: shared_decoder(), f"{NAME}@plain": plain_decoder(2)}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def web(server):
    with httpx.Client(base_url=server.url, timeout=120) as web:
        yield web


def expected(prompt, **options):
    return plain_decoder().generate(prompt, **options)


@pytest.mark.parametrize("chosen", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 1}])
def test_a_chat_is_the_decoders_own_text(client, chosen):
    own = expected(CHAT, max_new_tokens=12, **chosen)
    whole = client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=12, **chosen)
    assert whole.choices[0].message.content == own.text
    assert whole.choices[0].finish_reason == own.finish_reason
    assert whole.usage.completion_tokens == len(own.token_ids)
    details = whole.usage.completion_tokens_details
    assert details.accepted_prediction_tokens + details.rejected_prediction_tokens > 0
    stream = client.chat.completions.create(
        model=NAME,
        messages=CHAT,
        max_completion_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        **chosen,
    )
    chunks = list(stream)
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == own.text
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == own.finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert len({one.id for one in chunks}) == 1


def test_completions_of_several_prompts_and_choices(client):
    """Text i of a request has seed + i."""
    prompts = [PROMPT, "x"]
    own = [
        expected(prompt, max_new_tokens=6, temperature=1.0, seed=5 + number).text
        for number, prompt in enumerate(one for one in prompts for _ in range(2))
    ]
    options = {"model": NAME, "n": 2, "max_tokens": 6, "temperature": 1.0, "seed": 5}
    whole = client.completions.create(prompt=prompts, **options)
    assert [choice.text for choice in whole.choices] == own
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    ids = [shared_decoder().encode(prompt) for prompt in prompts]
    assert whole.usage.prompt_tokens == sum(map(len, ids))
    texts = [""] * 4
    for chunk in client.completions.create(prompt=ids, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == own
    one = client.completions.create(prompt=ids[0], **options | {"n": 1})
    assert one.choices[0].text == own[0]


def test_what_does_not_say_how_much_gets_what_fits(client, web):
    prompt = [5] * (LENGTH - 7)
    assert client.completions.create(model=NAME, prompt=prompt).usage.completion_tokens <= 7
    refused = web.post("/v1/completions", json={"model": NAME, "prompt": prompt, "max_tokens": 16})
    assert refused.json()["error"]["param"] == "max_tokens"


def test_a_client_in_an_event_loop(server):
    async def ask(client, seed):
        options = {"model": NAME, "messages": CHAT, "max_tokens": 8, "temperature": 1.0, "seed": seed}
        if seed % 2:
            return (await client.chat.completions.create(**options)).choices[0].message.content
        stream = await client.chat.completions.create(stream=True, **options)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def work():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(6)))

    assert asyncio.run(work()) == [
        expected(CHAT, max_new_tokens=8, temperature=1.0, seed=seed).text for seed in range(6)
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_no_part_of_the_text(web, stream):
    own = expected(CHAT, max_new_tokens=16).text
    stop = own[9:12]
    body = {"model": NAME, "messages": CHAT, "max_tokens": 16, "stop": ["nowhere", stop], "stream": stream}
    choices = asked(web, "/v1/chat/completions", body)
    assert "".join(one["text"] for one in choices) == own[: own.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def asked(web, path, body):
    """Texts and ends of the chunks, or of the answer, of a request with one choice."""
    answer = web.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found = events(answer.text) if body.get("stream") else [answer.json()]
    choices = [one["choices"][0] for one in found if one.get("choices")]
    for one in choices:
        message = one.get("delta") or one.get("message") or {}
        one["text"] = one.get("text") or message.get("content") or ""
    return choices


def events(text):
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_log_probabilities(client, temperature):
    """They change no text, and are the model's own."""
    import torch

    decoder = shared_decoder()
    own = expected(CHAT, max_new_tokens=8, temperature=temperature, seed=2)
    options = {"model": NAME, "max_tokens": 8, "temperature": temperature, "seed": 2}
    chat = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=3, **options).choices[0]
    assert chat.message.content == own.text
    prompt = decoder.encode(CHAT)
    with torch.inference_mode():
        logits = decoder.model(torch.tensor([prompt + own.token_ids])).logits[0, len(prompt) - 1 : -1]
    rows = torch.log_softmax(logits, -1)
    for row, token, entry in zip(rows, own.token_ids, chat.logprobs.content, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert entry.token == decoder.tokenizer.decode([token])
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    text = client.completions.create(prompt=prompt, logprobs=2, **options).choices[0]
    assert text.text == own.text
    assert text.logprobs.token_logprobs == pytest.approx([one.logprob for one in chat.logprobs.content], abs=1e-4)
    pieces = client.chat.completions.create(messages=CHAT, logprobs=True, stream=True, **options)
    streamed = [one for chunk in pieces if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in chat.logprobs.content], abs=1e-4)
    assert streamed[0].top_logprobs == []


def test_bias_and_penalties_reach_the_engine(client):
    decoder = shared_decoder()
    first = expected(CHAT, max_new_tokens=1).token_ids[0]
    options = {"model": NAME, "messages": CHAT, "max_tokens": 6}
    biased = client.chat.completions.create(logit_bias={str(first): -100}, **options)
    own = decoder.generate(CHAT, max_new_tokens=6, logit_bias={first: -100.0})
    assert biased.choices[0].message.content == own.text
    assert own.token_ids[0] != first
    penalised = client.chat.completions.create(extra_body={"repetition_penalty": 2.0}, **options)
    assert penalised.choices[0].message.content == expected(CHAT, max_new_tokens=6, repetition_penalty=2.0).text


def test_rounds_come_with_the_text_where_they_are_asked_for(web):
    body = {"model": NAME, "messages": CHAT, "max_tokens": 12, "stream": True}
    answer = web.post("/v1/chat/completions", json=body | {"stream_options": {"include_rounds": True}})
    rounds = [event["radar"] for event in events(answer.text) if "radar" in event]
    assert [one["round"] for one in rounds] == list(range(len(rounds)))
    assert sum(one["tokens"] for one in rounds) == 12
    assert all(one["draft_calls"] == 2 for one in rounds[1:])
    assert rounds[0]["draft_calls"] == 0
    assert "radar" not in web.post("/v1/chat/completions", json=body).text


TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}{% for m in messages %}{{ m.role }}:"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{% endfor %};{% endfor %}"
    "{% if flag %}!{% endif %}{% if add_generation_prompt %}go{% endif %}"
)


@pytest.fixture
def template(monkeypatch):
    monkeypatch.setattr(shared_decoder().tokenizer, "chat_template", TEMPLATE)


def test_tools_and_their_results_go_through_the_template(web, template):
    decoder = shared_decoder()
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 7}'}}
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "U"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "annotations": []},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
        {"role": "assistant", "content": "A"},
    ]
    body = {
        "model": NAME, "messages": messages, "max_tokens": 4, "chat_template_kwargs": {"flag": True},
        "tools": [TOOL],
    }  # fmt: skip
    prompt = "system:D;user:U;assistant:7;tool:7;assistant:A;!go"
    for extra, text in (({}, "f;" + prompt), ({"tool_choice": "none"}, prompt)):
        answer = web.post("/v1/chat/completions", json=body | extra).json()
        ids = decoder.tokenizer.encode(text, add_special_tokens=False)
        assert answer["usage"]["prompt_tokens"] == len(ids)
        assert answer["choices"][0]["message"]["content"] == expected(ids, max_new_tokens=4).text


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_in_the_text_is_told_as_one(web, monkeypatch, stream):
    """The pair writes none: its detokenizer is made to."""
    from radar.serve import texts

    said = iter(["Sure. <tool", '_call>{"name": "f", ', '"arguments": {"a": 1}}</tool_', "call>", "", "", "", ""])

    class Says:
        def __init__(self, tokenizer):
            pass

        def push(self, ids):
            return next(said)

        def finish(self):
            return ""

    monkeypatch.setattr(texts, "Detokenizer", Says)
    body = {"model": NAME, "messages": CHAT, "max_tokens": 8, "stream": stream, "tools": [TOOL]}
    answer = web.post("/v1/chat/completions", json=body)
    if stream:
        deltas = [event["choices"][0]["delta"] for event in events(answer.text)]
        assert "".join(delta.get("content") or "" for delta in deltas) == "Sure. "
        (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
        assert calls[0]["index"] == 0
    else:
        message = answer.json()["choices"][0]["message"]
        assert message["content"] == "Sure. "
        calls = message["tool_calls"]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}@plain"]
    assert client.models.retrieve(f"{NAME}@plain").id == f"{NAME}@plain"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="another", messages=CHAT)
    assert missing.value.code == "model_not_found"
    one, other = (
        client.chat.completions.create(model=model, messages=CHAT, max_tokens=10, temperature=1, seed=4)
        for model in (NAME, f"{NAME}@plain")
    )
    assert one.choices[0].message.content == other.choices[0].message.content
    assert other.usage.completion_tokens_details.rejected_prediction_tokens == 0


def test_health_and_metrics(web):
    assert web.get("/health").json() == {"status": "ok"}

    def read():
        families = text_string_to_metric_families(web.get("/metrics").text)
        return {
            (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
            for family in families
            for one in family.samples
        }

    before = read()
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 9}
    usage = web.post("/v1/completions", json=body).json()["usage"]
    after = read()

    def grown(*key):
        return after.get(key, 0) - before.get(key, 0)

    assert grown("radar_generation_tokens_total", NAME) == 9
    assert grown("radar_prompt_tokens_total", NAME) == usage["prompt_tokens"]
    assert grown("radar_request_success_total", "length", NAME) == 1
    assert grown("radar_time_to_first_token_seconds_count", NAME) == 1
    rounds = grown("radar_spec_decode_num_drafts_total", NAME)
    assert grown("radar_draft_calls_total", NAME) == 2 * rounds == 2 * grown("radar_stops_total", "2", NAME)
    assert after["radar_num_requests_running",] == 0
    assert after["radar_max_batch_size",] == 4


def test_ids_of_requests(web):
    assert web.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = web.get("/health", headers={"x-request-id": "no {good}"}).headers["x-request-id"]
    assert len(made) == 32
