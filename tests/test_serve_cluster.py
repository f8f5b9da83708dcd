"""`radar serve --replicas 2` on this machine with real clients, one replica killed in the middle; a config."""

import functools
import json
import os
import re
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from live_cluster import Cluster
from live_server import CHAT, plain_decoder, wait_until

import radar
from radar.cli import served
from radar.cli.cluster import build
from radar.cli.main import main
from radar.errors import UsageError
from radar.serve import local_ray

NAME, CHAT_PATH, TEXT_PATH = "radar-embedded", "/v1/chat/completions", "/v1/completions"
LONG = {"model": NAME, "prompt": "def f(", "max_tokens": 240, "min_tokens": 240, "stream": True}
REQUESTS, CLIENTS, PROMPTS = 200, 12, ("def add(a, b):", "x", "Once", "import os")


def text_of(choice):
    return choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""


def request_of(number):
    """Path, body, and the text that must come; some come again."""
    number %= 24
    body = {"model": NAME, "max_tokens": 1 + number % 3, "seed": number % 5, "stream": number % 3 > 0}
    body["temperature"] = number % 2
    options = {"max_new_tokens": body["max_tokens"], "seed": body["seed"], "temperature": body["temperature"]}
    prompt = PROMPTS[number % len(PROMPTS)] if number % 7 else CHAT
    own = own_text(json.dumps(prompt), **options)
    return (TEXT_PATH, body | {"prompt": prompt}, own) if number % 7 else (CHAT_PATH, body | {"messages": CHAT}, own)


@functools.cache
def own_text(prompt, **options):
    return plain_decoder().generate(json.loads(prompt), **options).text


def outcome(web, path, body, own):
    """What became of a request: its text, or an error that ended it after it had begun."""
    while True:
        with web.stream("POST", path, json=body) as answer:
            answer.read()
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
            threading.Event().wait(0.1)
            continue
        if answer.status_code != 200:
            return f"lost by {answer.status_code}"
        if not body["stream"]:
            return "equal" if text_of(answer.json()["choices"][0]) == own else "wrong"
        *events, last, _ = answer.text.split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: ")]
        text = "".join(text_of(one["choices"][0]) for one in chunks)
        if last == "data: [DONE]":
            return "equal" if text == own else "wrong"
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "has died" in error["message"]
        return "ended by an error" if own.startswith(text) else "wrong"


@pytest.fixture
def cluster():
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.process.kill()
        cluster.web.close()


@pytest.mark.slow
def test_two_replicas_of_which_one_is_killed(cluster):
    """One test: it is one server, which takes its time to start."""
    replicas = conversations_stay(cluster)
    a_client_that_leaves_frees_its_row(cluster)
    a_full_server_says_so(cluster)
    nothing_is_lost(cluster, replicas)
    children = cluster.end()
    assert len(children) > 4  # Ray's
    assert [line for line in cluster.lines if line["level"] == "error"] == []


def conversations_stay(cluster):
    """A turn is asked with the text before it. Returns a conversation of each replica."""
    kept, web = {}, cluster.web
    for number in range(12):
        messages, names = [{"role": "user", "content": f"Add {number}"}], []
        for turn in range(2 if number < 4 else 1):
            names.append(f"{number}.{turn}")
            body = {"model": NAME, "messages": messages, "max_tokens": 3}
            answer = web.post(CHAT_PATH, json=body, headers={"x-request-id": names[-1]}).json()
            messages = [*messages, answer["choices"][0]["message"], {"role": "user", "content": "and more"}]
        (replica,) = {cluster.replica_of(name) for name in names}
        kept[replica] = f"Add {number}"
    assert len(kept) == 2 == web.get("/health").json()["replicas"]
    return kept


def a_client_that_leaves_frees_its_row(cluster):
    before = sum(cluster.figures("radar_generation_tokens_total").values())
    with cluster.web.stream("POST", TEXT_PATH, json=LONG) as answer:
        lines = answer.iter_lines()  # while it is there the client is
        next(lines)
        assert sum(cluster.figures("radar_num_requests_running").values()) == 1
    wait_until(lambda: sum(cluster.figures("radar_num_requests_running").values()) == 0)
    assert sum(cluster.figures("radar_generation_tokens_total").values()) - before < 240


def a_full_server_says_so(cluster):
    """Twice 3 rows, and room for 8 that wait."""
    web, body = cluster.web, LONG | {"stream": False, "max_tokens": 12, "min_tokens": 12}
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: web.post(TEXT_PATH, json=body), range(40)))
    count = Counter(answer.status_code for answer in found)
    assert set(count) == {200, 429}
    assert count[200] >= 14
    assert len({answer.json()["choices"][0]["text"] for answer in found if answer.status_code == 200}) == 1
    refused = next(answer for answer in found if answer.status_code == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def nothing_is_lost(cluster, replicas):
    asked, web = [request_of(number) for number in range(REQUESTS)], cluster.web
    victim, content = next(iter(replicas.items()))
    long = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 450, "min_tokens": 450}
    with web.stream("POST", CHAT_PATH, json=long | {"stream": True}) as begun:
        lines = begun.iter_lines()
        next(lines)
        assert cluster.figures("radar_num_requests_running")[victim] == 1
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = [pool.submit(outcome, web, *one) for one in asked]
            wait_until(lambda: sum(one.done() for one in found) >= REQUESTS // 4)
            os.kill(int(victim.partition(":")[2]), signal.SIGKILL)
            events = [line.removeprefix("data: ") for line in lines if line]
            count = Counter(one.result() for one in found)
    assert "has died" in json.loads(events[-1])["error"]["message"], "it had ended before the replica did"
    assert set(count) <= {"equal", "ended by an error"}, count
    assert count["equal"] >= REQUESTS - 4  # a replica has not begun more at once
    assert web.get("/health").json()["replicas"] >= 1


def test_replicas_that_cannot_be_are_refused(monkeypatch, capsys):
    import torch

    assert main(["serve", "--replicas", "2", "--max-replicas", "1", "--device", "cpu", "--port", "0"]) == 2
    assert "--max-replicas 1 is below --replicas 2" in capsys.readouterr().err
    assert main(["serve", "--replicas", "1", "--device", "cuda:1", "--port", "0"]) == 2
    assert "Ray says which GPU" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "0")
        assert main(["serve", "--replicas", "2", "--device", "cpu", "--port", "0"]) == 2
    assert "Ray starts the processes" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["serve", "--replicas", "1", "--max-replicas", "2", "--port", "0"]) == 2
    assert "2 replicas need a GPU each, and there are 1" in capsys.readouterr().err
    monkeypatch.setattr("radar.cli.serve.find_spec", lambda name: None if name == "ray" else name)
    assert main(["serve", "--replicas", "1"]) == 2
    assert 'ray is missing: pip install "radar-decoding[ray]"' in capsys.readouterr().err
    for words in (["--replicas", "0"], ["--max-replicas", "x"]):
        with pytest.raises(SystemExit):
            main(["serve", *words])


def test_the_readmes_config_is_one_that_ray_takes(monkeypatch):
    from ray.serve.schema import ServeDeploySchema

    text = (Path(radar.__file__).parent / "serve" / "README.md").read_text()
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(config)).applications
    assert application.import_path == f"{build.__module__}:build"
    monkeypatch.setenv("RADAR_API_KEY", "secret")
    ingress = build(application.args)._bound_deployment
    replicas, limits, keys, rows = ingress.init_args
    assert (keys, rows) == (["secret"], application.args["max_replicas"] * 8)
    deployment = replicas._bound_deployment
    bounds = deployment._deployment_config.autoscaling_config
    assert (bounds.min_replicas, bounds.max_replicas) == (
        application.args["replicas"],
        application.args["max_replicas"],
    )
    assert deployment.ray_actor_options["num_gpus"] == 1
    make, options, same = deployment.init_args
    assert (make, same) == (served.served_models, limits)
    assert options["target"] == application.args["target"]
    assert "secret" not in str(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "replicas"),
        ({"max_length": "x"}, "max-length"),
        ({"nonsense": 1}, "nonsense"),
        ({"port": 80}, "http_options.port"),
        ({"api_key": False}, "api_key is not on or off"),
        ({"api-key": True}, "api-key is not on or off"),
        ({"max_waiting": False}, "max_waiting is not on or off"),
        ({"nonsense": False}, "nonsense"),
        ({"help": True}, "help"),
        ({"compare": 1}, "compare"),
        ({"replicas": 2, "max_replicas": 1}, "--max-replicas 1 is below --replicas 2"),
        ({"device": "cuda:1"}, "Ray says which GPU"),
    ],
)
def test_a_config_that_asks_for_what_there_is_not(options, message):
    with pytest.raises(UsageError, match=message):
        build(options)


def test_what_is_null_in_a_config_is_left_out(monkeypatch):
    monkeypatch.delenv("RADAR_API_KEY", raising=False)
    nothing = dict.fromkeys(("api_key", "api_key_file", "name", "target", "max_replicas", "compare", "max_waiting"))
    ingress = build(nothing)._bound_deployment
    assert ingress.init_args[2] == []
    _, options, limits = ingress.init_args[0]._bound_deployment.init_args
    assert limits.max_waiting == 64
    assert (options["name"], options["target"], options["compare"]) == (None, None, False)


def test_ray_is_this_servers_own_whatever_the_environment_says(monkeypatch):
    """Ray's token is a new one each time, and no cluster is joined."""
    import ray

    found = []

    def init(**options):
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        found.append((options["address"], os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]))
        raise RuntimeError("far enough")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(local_ray, "as_json", lambda *_: None)
    for _ in range(2):
        given = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "known", "RAY_ADDRESS": "ray://elsewhere:1"}
        given["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # it would listen on all addresses
        monkeypatch.setattr(os, "environ", dict(os.environ) | given)
        with pytest.raises(RuntimeError, match="far enough"), local_ray.local_replicas(None, cpus=1, gpus=0):
            pass
    (address, mode, token), (*same, other) = found
    assert (address, mode) == ("local", "token") == tuple(same)
    assert len(token) == len(other) == 64
    assert token != other


def test_options_of_a_config_are_those_of_the_command():
    application = build(
        {"device": "cpu", "compare": True, "no_fallback": False, "max_waiting": 0, "max_body": 5, "api_key": "k"}
    )
    assert application._bound_deployment.init_args[2] == ["k"]
    deployment = application._bound_deployment.init_args[0]._bound_deployment
    assert deployment.ray_actor_options["num_gpus"] == 0
    _, options, limits = deployment.init_args
    assert (options["compare"], options["no_fallback"]) == (True, False)
    assert "api_key" not in options  # replicas need none
    assert (limits.max_waiting, limits.max_body) == (0, 5)
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (8, -1)
