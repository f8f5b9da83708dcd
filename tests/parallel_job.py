"""Jobs of two ranks on this machine's CPU, by forks of one process that has imported what they need.

`tests/test_parallel.py` starts it, with a folder and the environment that torch and Triton read when they are
imported. It runs all cases as `torchrun` would, a rank that fails ends the others, and writes `jobs.json`.
"""

import atexit
import json
import os
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import httpx
import torch
from fakes import tiny_target
from parallel_cases import KINDS, PROMPTS, VOCAB, embedded, families, generate, graphs, serve
from parallel_failures import follower_fails, leader_dies, leader_fails, leader_raises, ranks_part

from radar.engine import channel

CASES = (
    embedded, graphs, families, generate, serve, follower_fails, ranks_part, leader_fails, leader_raises, leader_dies,
)  # fmt: skip


def ask_server(files, pids):
    """Two texts from each of its models, and one that is under way when the job is told to end."""
    lines, until = [], time.monotonic() + 100
    while not (lines := [x for x in files[0].read_text().splitlines() if '"listening"' in x]):
        assert time.monotonic() < until
        time.sleep(0.05)
    body = {"prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0.8, "seed": 3}
    with httpx.Client(base_url=json.loads(lines[0])["url"], timeout=100) as web:
        names = [model["id"] for model in web.get("/v1/models").json()["data"]]
        found = {n: web.post("/v1/completions", json=body | {"model": n}).json()["choices"][0]["text"] for n in names}
        with web.stream("POST", "/v1/completions", json=body | {"model": names[0], "stream": True}) as answer:
            parts = answer.iter_text()
            text = next(parts)
            for pid in pids:  # as torchrun does
                os.kill(pid, signal.SIGTERM)
            return found | {"stream": text + "".join(parts)}


def run(case, folder):
    """A job: exit codes of its ranks, what they have written, and the result of rank 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [[folder / f"{case.__name__}.{rank}.{kind}" for kind in ("out", "err")] for rank in range(2)]
    for path in (path for rank in files for path in rank):
        path.touch()  # the server's is read before the rank has run
    result, began = folder / f"{case.__name__}.json", time.monotonic()
    pids = [_fork(case, folder, rank, port, files[rank], result) for rank in range(2)]
    codes, said = [None, None], None
    if case is serve:
        said = ask_server([err for _, err in files], pids)
    until = time.monotonic() + 120
    while None in codes:
        for rank, pid in enumerate(pids):
            if codes[rank] is None and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
                if codes[rank]:  # the others have a while to say something themselves
                    until = min(until, time.monotonic() + 10)
        if time.monotonic() > until:
            for pid in (p for p, code in zip(pids, codes, strict=True) if code is None):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    out, err = ([path.read_text() for path in kind] for kind in zip(*files, strict=True))
    said = json.loads(result.read_text()) if result.exists() else said
    return {"codes": codes, "out": out, "err": err, "result": said, "seconds": time.monotonic() - began}


def _fork(case, folder, rank, port, files, result):
    if pid := os.fork():
        return pid
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        for number, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
            os.environ[name] = str(value)
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        # long enough for a rank that is there, and no longer than needed where one is waited for in vain
        channel.ANSWER = timedelta(seconds=2 if case in (leader_fails, follower_fails) else 30)
        found = case(rank, folder)
        if rank == 0 and found is not None:
            result.write_text(json.dumps(found))
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, (family, extra) in KINDS.items():
        model = tiny_target(family, vocab_size=VOCAB, **extra)
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(place / name)
    chosen = [case for case in CASES if case.__name__ in sys.argv[2:] or not sys.argv[2:]]
    (place / "jobs.json").write_text(json.dumps({case.__name__: run(case, place) for case in chosen}))
