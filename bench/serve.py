"""A server under load: clients on loopback that ask, leave halfway and send nonsense; every text against its own.

`python -m bench.serve --clients 64 --requests 2000 --out FILE`, or `--seconds S`: the embedded pair, on a GPU at the
shapes of Llama-3.1-8B. Times are the clients', who have processes of their own. Exit status 1 for a lost or wrong text.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from bench.command import command_line
from bench.lab.widen import widen
from bench.shapes import LLAMA_8B
from radar import AutoregressiveDecoder, RadarDecoder
from radar.cli.decoders import default_prompts
from radar.serve.app import make_app
from radar.serve.models import ServedModel
from radar.serve.server import RadarServer, bound_socket
from radar.serve.settings import Limits
from radar.tools.machine import describe_machine
from radar.tools.prompts import load_prompts

LENGTH, DISTINCT, CHAT, TEXT = 1024, 64, "/v1/chat/completions", "/v1/completions"
BAD = (
    b"{", b"[1]", b'{"model": "pair"}', b'{"model": "other", "prompt": "x"}', b'{"model": "pair", "prompt": 1e999}',
    b'{"model": "pair", "prompt": "\\ud800"}', b'{"model": "pair", "prompt": "x", "n": -1}', b"[" * 50_000,
    b'{"model": "pair", "prompt": [999999]}', b'{"model": "pair", "prompt": "x", "max_tokens": 99999}',
)  # fmt: skip
Asked = tuple[str, dict[str, Any]]


def request_of(number: int, prompts: list[str]) -> Asked:
    """Path and body."""
    rng, prompt = random.Random(number), prompts[number % len(prompts)]
    body: dict[str, Any] = {"model": "pair", "max_tokens": rng.choice([8, 16, 32, 64, 128]), "seed": number}
    body |= {"temperature": rng.choice([0.0, 0.0, 0.7, 1.0]), "stream": rng.random() < 0.7}
    body |= {"stream_options": {"include_usage": True}} if body["stream"] else {}
    if rng.random() < 0.5:
        return TEXT, body | {"prompt": prompt}
    body["logprobs"] = rng.random() < 0.1
    return CHAT, body | {"messages": [{"role": "user", "content": prompt}]}


def text_of(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""


async def ask(web: httpx.AsyncClient, asked: Asked, leave: int, times: dict[str, list[float]]) -> str:
    """The text, or what came of it in `leave` chunks or hundredths of a second."""
    (path, body), begun, first, last, text = asked, time.perf_counter(), 0.0, 0.0, ""
    if not body["stream"]:
        answer = await web.post(path, json=body, timeout=leave / 100 or 600)
        return text_of(answer.raise_for_status().json()["choices"][0])
    async with web.stream("POST", path, json=body) as answer:
        async for line in answer.raise_for_status().aiter_lines():
            chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}  # not of ": queued"
            if chunk.get("choices") and (said := text_of(chunk["choices"][0])):
                text, last = text + said, time.perf_counter()
                first = first or last
            leave -= bool(line)
            if leave == 0:
                return text
            if "usage" in chunk and (count := chunk["usage"]["completion_tokens"]) > 1 and first:
                times["first"].append(first - begun)
                times["token"].append((last - first) / (count - 1))
            if line == "data: [DONE]":
                return text
    raise httpx.ReadError("the stream ended halfway")


def load(url: str, asked: list[Asked], texts: list[str], args: argparse.Namespace, part: int, parts: int) -> Any:
    """What became of a part of the requests, by its name, the times of streams, and when it began and ended."""
    found: Counter[str] = Counter()
    times: dict[str, list[float]] = {"first": [], "token": []}
    begun, numbers = time.monotonic(), iter(range(part, 10**9 if args.seconds else args.requests, parts))
    until = begun + (args.seconds or 1e9)

    async def one(web: httpx.AsyncClient, number: int) -> str:
        rng, which = random.Random(10**6 + number), number % len(asked)
        if rng.random() < 0.05:
            answer = await web.post(TEXT, content=rng.choice(BAD), headers={"content-type": "application/json"})
            return "refused_429" if answer.status_code == 429 else f"malformed_{answer.status_code // 100}xx"
        leave, whole = rng.randint(1, 20) if rng.random() < 0.1 else 0, texts[which]
        while True:
            try:
                text = await ask(web, asked[which], leave, times)
                return "equal" if text == whole else "left" if leave and whole.startswith(text) else "wrong"
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 429:
                    return f"lost_{error.response.status_code}"
                found["refused_429"] += 1
                await asyncio.sleep(int(error.response.headers["retry-after"]) * rng.random())
            except httpx.HTTPError as error:
                return "left" if leave and isinstance(error, httpx.TimeoutException) else f"lost_{type(error).__name__}"

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as web:
            while time.monotonic() < until and (number := next(numbers, None)) is not None:
                found[await one(web, number)] += 1

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(part, args.clients, parts)))

    asyncio.run(clients())
    return found, times, begun, time.monotonic()


def own_text(plain: Any, body: dict[str, Any]) -> str:
    options = {"max_new_tokens": body["max_tokens"], "temperature": body["temperature"], "seed": body["seed"]}
    return str(plain.generate(body.get("messages") or body["prompt"], **options).text)


def memory() -> tuple[int, int]:
    """Megabytes of this process, and of the card."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 // 10**6, torch.cuda.memory_reserved() // 10**6 if torch.cuda.is_available() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("clients", 64), ("requests", 2000), ("seconds", 0), ("rows", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    small = RadarDecoder.from_pretrained(device=device, dtype=dtype)
    pair = widen(small.model, small.draft, LLAMA_8B, device=device, dtype=dtype) if graphs else small
    same: dict[str, Any] = {"tokenizer": small.tokenizer, "max_length": LENGTH, "max_batch_size": args.rows}
    prompts = [line.text for line in load_prompts(default_prompts())]
    asked = [request_of(number, prompts) for number in range(DISTINCT)]
    plain = AutoregressiveDecoder(pair.model, **same)
    with ThreadPoolExecutor(args.rows) as pool:
        texts = list(pool.map(own_text, [plain] * DISTINCT, [body for _, body in asked]))
    del plain
    decoder = RadarDecoder(pair.model, draft=pair.draft, policy=small.policy, **same)
    limits, listener = Limits(max_waiting=args.rows // 2), bound_socket("127.0.0.1", 0)
    app = make_app([ServedModel("pair", decoder)], limits=limits)
    server = RadarServer(app, limits, with_logs=False)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    samples, parts = [memory()], max(1, min(4, (os.cpu_count() or 1) // 4, args.clients))
    with ProcessPoolExecutor(parts, mp_context=get_context("spawn")) as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        driven = [pool.submit(load, url, asked, texts, args, part, parts) for part in range(parts)]
        while not all(one.done() for one in driven):
            time.sleep(0.5)
            samples.append(memory())
    counts, timed, begun, ended = zip(*(one.result() for one in driven), strict=True)
    found, seconds = sum(counts, Counter()), max(ended) - min(begun)
    times = {name: [one for part in timed for one in part[name]] for name in ("first", "token")}
    server.end()
    thread.join(60)
    report: dict[str, Any] = {"command": command_line("bench.serve", sys.argv[1:])} | describe_machine(device)
    report |= {"clients": args.clients, "rows": args.rows, "seconds": round(seconds, 1), **dict(sorted(found.items()))}
    for name, share in (("first", 50), ("first", 99), ("token", 50), ("token", 99)):
        if known := sorted(times[name]):
            report[f"{name}_ms_p{share}"] = round(1e3 * known[(len(known) - 1) * share // 100], 2)
    report |= {f"memory_mb_{share}": samples[(len(samples) - 1) * share // 100] for share in (0, 25, 50, 75, 100)}
    middle, late = np.array_split(np.array(samples), 4)[1::2]
    report["memory_grew"] = len(samples) > 240 and bool((late.max(0) > 1.1 * middle.max(0)).any())  # of two minutes on
    report["tokens_per_second"] = round(decoder.metrics.num_tokens / seconds, 1)
    report |= {"left_in": app.state.admission.answers, "ended": not thread.is_alive()}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    bad = any(name.startswith(("lost", "wrong", "malformed_")) and name != "malformed_4xx" for name in found)
    return int(bad or report["memory_grew"] or thread.is_alive() or app.state.admission.answers > 0)


if __name__ == "__main__":
    sys.exit(main())
