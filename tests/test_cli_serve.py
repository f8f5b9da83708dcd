"""`radar serve`: its options, what it says before it loads anything, and the whole of it in a process."""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

import radar
from radar.cli import serve
from radar.cli.main import main
from radar.errors import UsageError
from radar.serve.server import bound_socket

SERVE = Path(radar.__file__).parent / "serve"


def parsed(*words):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(words)


def test_it_listens_on_this_machine_alone():
    assert parsed().host == "127.0.0.1"


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve"]) == 2
    assert 'uvicorn is missing: pip install "radar-decoding[serve]"' in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--target", "/nowhere"]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", "--host", "256.256.256.256", "--target", "/nowhere"]) == 2


def test_a_port_is_held_from_the_start():
    with bound_socket("127.0.0.1", 0) as first, pytest.raises(UsageError, match="cannot listen"):
        bound_socket("127.0.0.1", first.getsockname()[1])


def test_keys(tmp_path, monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    file = tmp_path / "keys"
    file.write_text(" one \n\ntwo\n")
    assert serve._keys(parsed()) == []
    assert serve._keys(parsed("--api-key-file", str(file))) == ["one", "two"]
    monkeypatch.setenv(serve.KEY, "three")
    assert serve._keys(parsed()) == ["three"]
    assert serve._keys(parsed("--api-key", "four")) == ["four"]
    file.write_text("\n")
    for empty in (["--api-key", " "], ["--api-key-file", str(file)], ["--api-key-file", str(tmp_path / "none")]):
        with pytest.raises(UsageError, match=r"empty|no such file"):
            serve._keys(parsed(*empty))
    file.write_bytes(b"\xef\xbb\xbfone\n")
    assert serve._keys(parsed("--api-key-file", str(file))) == ["one"]
    file.write_bytes(b"\xff\xfe\n")
    for unreadable in (file, tmp_path):
        with pytest.raises(UsageError, match="no file of keys"):
            serve._keys(parsed("--api-key-file", str(unreadable)))
    monkeypatch.setenv(serve.KEY, "\udcff")
    with pytest.raises(UsageError, match="not UTF-8"):
        serve._keys(parsed())
    monkeypatch.setenv(serve.KEY, "")
    with pytest.raises(UsageError, match="empty"):
        serve._keys(parsed())


@pytest.mark.parametrize(
    "words", [["--port", "99999"], ["--max-waiting", "-1"], ["--max-seconds", "0"], ["--max-seconds", "nan"]]
)
def test_limits_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "must be" in capsys.readouterr().err


def test_documents_name_options_and_metrics_that_there_are():
    """Of the README, the unit and the image."""
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    known = set(parser._option_string_actions)
    for name in ("README.md", "Dockerfile"):
        text = (SERVE / name).read_text()
        text = re.sub(r"(docker|useradd|apt-get|pip|torchrun|HEALTHCHECK) [^\n]*", "", text)
        assert set(re.findall(r"--[a-z][a-z-]+", text)) - {"--timeout", "--interval"} <= known, name
    copied = re.findall(r"^COPY (.*) \S+$", (SERVE / "Dockerfile").read_text(), re.MULTILINE)
    assert [name for words in copied for name in words.split() if not (SERVE.parents[1] / name).exists()] == []
    source = (SERVE / "metrics.py").read_text()
    for name in re.findall(r"`(?:radar_)?([a-z_]+)_total`", (SERVE / "README.md").read_text()):
        assert name in source


@pytest.mark.slow
def test_a_process_serves_and_ends_by_sigterm(tmp_path):
    command = [
        sys.executable, "-m", "radar", "serve", "--port", "0", "--compare", "--max-batch-size", "2", "--max-length",
        "200", "--device", "cpu", "--total-tokens", "8", "--max-calls", "2", "--no-fallback",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=None)
    try:
        lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
        url = next(line["url"] for line in lines if line["message"] == "listening")
        said = []
        reader = threading.Thread(target=lambda: said.extend(lines))
        reader.start()
        with httpx.Client(base_url=url, timeout=120) as web:
            names = [model["id"] for model in web.get("/v1/models").json()["data"]]
            assert names == ["radar-embedded", "radar-embedded@eagle3", "radar-embedded@plain"]
            body = {"prompt": "def add(a, b):", "max_tokens": 20, "temperature": 1, "seed": 1}
            texts = {
                web.post("/v1/completions", json=body | {"model": name}).text.split('"text":')[1][:80] for name in names
            }
            assert len(texts) == 1
            with web.stream("POST", "/v1/completions", json=body | {"model": names[0], "stream": True}) as answer:
                parts = answer.iter_text()
                text = next(parts)
                process.send_signal(signal.SIGTERM)
                text += "".join(parts)
            assert text.endswith("data: [DONE]\n\n")
        assert process.wait(60) == 0
        reader.join(10)
        requests = [line for line in said if line["message"] == "request"]
        assert [line["status"] for line in requests] == [200] * 5
        assert all(line["request_id"] for line in requests)
        assert requests[-1]["completion_tokens"] == 20 or requests[-1]["finish_reasons"] == ["stop"]
        assert "def add" not in json.dumps(said)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
