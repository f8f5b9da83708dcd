"""Jobs of two ranks on this machine's CPU, by forks of one process that has imported what they need.

`tests/test_parallel.py` starts it, with a folder and the environment that torch and Triton read when they are
imported. It runs all `CASES` as `torchrun` would, a rank that fails ends the others, and writes `jobs.json`. A case is
what a rank runs; what rank 0 returns is the job's result.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import httpx
import torch
from fakes import FAMILIES, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.cli.main import main
from radar.engine import channel
from radar.engine.eager import EagerEngine
from radar.engine.rows import RowsEngine
from radar.errors import BusyError, UsageError

VOCAB = 18  # two ranks share it
TREE = TreeConfig(total_tokens=16, max_calls=4, tree_top_k=4)
KINDS = {
    **{name: (name, {}) for name in FAMILIES},
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}
PROMPTS = ["def fibonacci(n):", "A baker makes 24 rolls an hour.", "import os\n", "The capital of", "x = [1, 2"]
CALL = ["--device", "cpu", "--dtype", "float32", "--max-length", "200", "--total-tokens", "12", "--max-calls", "3"]
SERVE = ["serve", "--port", "0", "--max-batch-size", "2", "--compare", *CALL]


class EveryOther:
    """A processor with a state of its own: it forbids the best token at every second call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        return scores if self.calls % 2 else scores.scatter(1, scores.argmax(1, keepdim=True), -torch.inf)


def raising(ids, scores):
    raise ValueError("a processor has had enough")


def decoders(model, draft, **options):
    """Of one row and of several, drafting and plain."""
    one = {"max_length": 200, "tokenizer": None} | options
    rounds = {"draft": draft, "tree": TREE, "fallback": False, "policy": FixedDepth(3)}
    return {
        "one": RadarDecoder(model, **rounds, **one),
        "rows": RadarDecoder(model, **rounds, **one, max_batch_size=4),
        "plain": AutoregressiveDecoder(model, **one),
    }


def few_texts(found, prompts):
    """What decoders make of prompts, greedy and sampled."""
    one, sampled = {"max_new_tokens": 10}, {"max_new_tokens": 8, "temperature": 0.9, "seed": 5}
    made = [found[name].generate(prompts[0], **how).token_ids for name in ("one", "plain") for how in (one, sampled)]
    return made + [text.token_ids for text in found["rows"].generate(prompts, **sampled)]


def texts(found, prompts, tokens=14):
    """What decoders make of prompts, in the ways that a text can be asked for; nothing of it depends on a clock."""
    one, rows, plain = found["one"], found["rows"], found["plain"]
    made = {}
    for name, decoder in (("one", one), ("plain", plain)):
        made[name] = decoder.generate(prompts[0], max_new_tokens=tokens).token_ids
        sampled = {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.2}
        made[f"{name} sampled"] = decoder.generate(prompts[1], max_new_tokens=tokens, **sampled).token_ids
        made[f"{name} processed"] = decoder.generate(
            prompts[0], max_new_tokens=tokens, logits_processor=[EveryOther()]
        ).token_ids
    made["rows"] = [text.token_ids for text in rows.generate(prompts, max_new_tokens=tokens, temperature=0.7, seed=3)]
    with rows.rounds(prompts[0], max_new_tokens=60) as left:  # joins, is left in the middle, others go on
        next(left)
        others = [rows.rounds(p, max_new_tokens=k + 6, seed=1) for k, p in enumerate(prompts)]
        next(left)
    made["rows left"] = [[token for item in text for token in item.tokens] for text in others]
    mixed = [rows.rounds(prompts[0], max_new_tokens=tokens, logits_processor=[EveryOther()])]
    mixed += [rows.rounds(prompts[1], max_new_tokens=tokens)]
    made["rows processed"] = [[token for item in text for token in item.tokens] for text in mixed]
    return made


def embedded(rank, folder):
    """The pair of the package: the same texts as in one process, and what may happen between them."""
    first = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, tp_plan="auto", max_length=200)
    ours = decoders(first.model, first.draft, tokenizer=first.tokenizer)
    unsteady = RadarDecoder(first.model, draft=first.draft, tokenizer=first.tokenizer, max_length=200, tree=TREE)
    unsteady.engine.fallback._interval = unsteady.engine.fallback._left = 2  # kinds of rounds change with the clock
    if rank:
        refused = []
        for call in (lambda: first.generate("x"), lambda: next(ours["rows"].rounds("x"))):
            with contextlib.suppress(UsageError):
                call()
                refused.append("nothing")
        with contextlib.suppress(UsageError):
            first.policy = FixedDepth(1)
            refused.append("nothing")
        assert refused == []
        _break_with_seed(RowsEngine, _seeds)
        first.follow()
        return None
    whole = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=200)
    alone = decoders(whole.model, whole.draft, tokenizer=whole.tokenizer)
    result = {"texts": [texts(ours, PROMPTS), texts(alone, PROMPTS)], "follows": first.is_follower}
    result["unsteady"] = [
        unsteady.generate(PROMPTS[0], max_new_tokens=40).token_ids,
        alone["one"].generate(PROMPTS[0], max_new_tokens=40).token_ids,
    ]
    changed = []
    again = Threshold(0.3)
    for policy in (again, FixedDepth(1), again):
        for found in (ours, alone):
            found["one"].policy = policy
        pair = [d["one"].generate(PROMPTS[2], max_new_tokens=10) for d in (ours, alone)]
        changed.append([(text.token_ids, text.metrics.num_draft_calls) for text in pair])
    result["policies"] = changed
    result["errors"] = errors(first, ours, alone)
    return result


def errors(first, ours, alone):
    """What goes wrong on all ranks, or on rank 0 before it reaches the others, ends no job."""
    said = {}
    with contextlib.suppress(UsageError):
        first.follow()
        said["follow"] = "nothing"
    for name in ("one", "rows"):
        try:
            ours[name].generate(PROMPTS[0], max_new_tokens=9, logits_processor=[raising])
        except ValueError as error:
            said[name] = str(error)

    class Local(FixedDepth):
        pass

    try:
        ours["one"].policy = Local(2)
    except UsageError as error:
        said["local"] = str(error)
    try:
        ours["one"].policy = FixedDepth(9)  # more than the tree has levels, which each rank finds
    except UsageError as error:
        said["deep"] = str(error)
    nested = []

    def asks(ids, scores):
        with contextlib.suppress(BusyError):
            nested.append(ours["plain"].generate("x", max_new_tokens=1))
        return scores

    ours["one"].generate(PROMPTS[0], max_new_tokens=2, logits_processor=[asks])
    said["nested"] = len(nested)
    engine = ours["rows"].engine
    _break_with_seed(RowsEngine, _seeds)
    try:
        ours["rows"].generate(PROMPTS[0], max_new_tokens=40, temperature=1.0, seed=BREAKING)
    except RuntimeError as error:
        said["engine"] = str(error)
    pair = [d["rows"].generate(PROMPTS[0], max_new_tokens=12).token_ids for d in (ours, alone)]
    said["again"] = [pair[0] == pair[1], ours["rows"].engine is engine]
    return said


BREAKING = 666  # a seed


def _break_with_seed(kind, text_of):
    """Let an engine fail in the second round of a text with that seed, once."""
    real, calls = kind.round, []

    def broken(self):
        calls.append(BREAKING in text_of(self))
        if calls[-1] and sum(calls) == 2:
            raise RuntimeError("planted: the engine fails")
        return real(self)

    kind.round = broken


def _seeds(engine):
    return [text.request.sampling.seed for text in engine._texts]


def families(rank, folder):
    """Tiny models of all families, with biases, norms of heads and tied weights."""
    loaded, found = {}, {}
    from radar.target.load import load_model

    for kind in KINDS:
        path = {"path": str(Path(folder) / kind), "device": torch.device("cpu"), "dtype": torch.float32}
        loaded[kind] = load_model(**path, tp_plan="auto", progress=False)
        found[kind] = decoders(loaded[kind], tiny_draft(vocab_size=VOCAB))
    if rank:
        found["llama"]["one"].follow()
        return None
    prompts = [[5, 3, 2, 8], [1, 2, 3] * 7, [4]]
    result = {}
    for kind, ours in found.items():
        alone = load_model(**path | {"path": str(Path(folder) / kind)}, progress=False)
        result[kind] = [few_texts(d, prompts) for d in (ours, decoders(alone, tiny_draft(vocab_size=VOCAB)))]
    return result


def _tiny(folder):
    return RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, tp_plan="auto", max_length=100, policy=FixedDepth(3)
    )


def follower_fails(rank, folder):
    decoder = _tiny(folder)
    if rank:
        _break_with_seed(EagerEngine, lambda engine: [BREAKING])
        decoder.follow()
    decoder.generate(PROMPTS[0], max_new_tokens=30)


def ranks_part(rank, folder):
    """The head of one is another one, so that it drafts other trees."""
    decoder = _tiny(folder)
    if rank:
        decoder.draft.fc.weight.data.mul_(-1)
        decoder.follow()
    decoder.generate(PROMPTS[0], max_new_tokens=60)


def leader_raises(rank, folder):
    decoder = _tiny(folder)
    if rank:
        decoder.follow()
        return
    decoder.generate(PROMPTS[0], max_new_tokens=4)
    raise RuntimeError("planted: rank 0 has had enough")


def leader_dies(rank, folder):
    decoder = _tiny(folder)
    if rank:
        decoder.follow()
    os._exit(0)


def generate(rank, folder):
    assert main(["generate", PROMPTS[0], "--max-new-tokens", "16", *CALL]) == 0


def serve(rank, folder):
    assert main(SERVE) == 0


CASES = (embedded, families, follower_fails, ranks_part, leader_raises, leader_dies, generate, serve)


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
    try:
        for number, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
            os.environ[name] = str(value)
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        channel.ANSWER = type(channel.ANSWER)(seconds=4)
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
