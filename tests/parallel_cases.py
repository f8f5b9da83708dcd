"""What a rank of two runs in the jobs of `parallel_job.py`. What rank 0 returns is the job's result."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import FAMILIES, tiny_draft
from rows_decoders import tokens_of

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.cli.main import main
from radar.engine import build, captured, plain
from radar.engine.rows import RowsEngine
from radar.errors import BusyError, UsageError
from radar.replay.full_round import FullRounds
from radar.replay.record import record
from radar.target.split import SummedLinear
from radar.tools.profile import profile_round, profile_steps

VOCAB = 18  # two ranks share it
TREE = TreeConfig(total_tokens=16, max_calls=4, tree_top_k=4)
KINDS = {name: (name, {}) for name in FAMILIES}
KINDS["biased"] = "llama", {"attention_bias": True, "mlp_bias": True}
PROMPTS = ["def fibonacci(n):", "A baker makes 24 rolls an hour.", "import os\n", "x = [1, 2"]
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
    one = {"max_length": 200, "tokenizer": options.pop("tokenizer", None)}
    rounds = {"draft": draft, "tree": TREE, "fallback": False, "policy": FixedDepth(3)} | options | one
    return {
        "one": RadarDecoder(model, **rounds),
        "rows": RadarDecoder(model, **rounds, max_batch_size=4),
        "plain": AutoregressiveDecoder(model, **one),
    }


def drifting(rank, draft):
    """What decoders are made of where cards round differently, and much more so: rank 1 drafts other trees."""
    if rank:
        for part in draft.parameters():
            part.data += 0.3 * torch.randn_like(part) * part.abs().mean()
    return draft, {"policy": FixedDepth(3 - rank)}


def few_texts(found, prompts):
    """What decoders make of prompts, greedy and sampled."""
    one, several = found["one"].generate(prompts[0], max_new_tokens=8), found["rows"]
    sampled = several.generate(prompts, max_new_tokens=5, temperature=0.9, seed=5)
    return [text.token_ids for text in (one, *sampled)]


def texts(found, prompts, tokens=8):
    """What decoders make of prompts, in the ways that a text can be asked for; nothing of it depends on a clock."""
    one, rows, plain = found["one"], found["rows"], found["plain"]
    ways = {
        "greedy": (one, {}),
        "sampled": (one, {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.2}),
        "processed": (one, {"logits_processor": [EveryOther()]}),
        "plain": (plain, {"temperature": 0.9, "seed": 5}),
    }
    made = {name: one.generate(prompts[0], max_new_tokens=tokens, **way).token_ids for name, (one, way) in ways.items()}
    made["rows"] = [text.token_ids for text in rows.generate(prompts, max_new_tokens=tokens, temperature=0.7, seed=3)]
    with rows.rounds(prompts[0], max_new_tokens=40) as left:  # joins, is left in the middle, others go on
        next(left)
        others = [rows.rounds(p, max_new_tokens=k + 6, seed=1) for k, p in enumerate(prompts)]
        next(left)
    made["rows left"] = [tokens_of(text) for text in others]
    full = [rows.rounds(p, max_new_tokens=25 + 3 * k) for k, p in enumerate(prompts)]
    behind = [rows.rounds(p, max_new_tokens=5, seed=2, temperature=0.8) for p in (*prompts, prompts[0])]
    next(full[0]), next(full[0]), behind.pop(0).close()  # whose prompt waits for a row
    made["rows full"] = [tokens_of(text) for text in (*full[1:], *behind)]
    mixed = [rows.rounds(prompts[0], max_new_tokens=tokens, logits_processor=[EveryOther()])]
    mixed += [rows.rounds(prompts[1], max_new_tokens=tokens)]
    made["rows processed"] = [tokens_of(text) for text in mixed]
    return made


def embedded(rank, folder):
    """The pair of the package: the same texts as in one process, and what may happen between them."""
    first = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, tp_plan="auto", max_length=200)
    ours = decoders(first.model, first.draft, tokenizer=first.tokenizer)
    unsteady = RadarDecoder(first.model, draft=first.draft, tokenizer=first.tokenizer, max_length=200, tree=TREE)
    if rank == 0:  # whose kinds of rounds change soon, and with its clock
        unsteady.engine.fallback._interval = unsteady.engine.fallback._left = 2
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
        break_once(RowsEngine, _seeds)
        first.follow()
        return None
    whole = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, max_length=200)
    alone = decoders(whole.model, whole.draft, tokenizer=whole.tokenizer)
    result = {"texts": [texts(ours, PROMPTS), texts(alone, PROMPTS)], "follows": first.is_follower}
    result["unsteady"] = [
        unsteady.generate(PROMPTS[0], max_new_tokens=24).token_ids,
        alone["one"].generate(PROMPTS[0], max_new_tokens=24).token_ids,
    ]
    changed = []
    again = Threshold(0.3)
    for policy in (again, FixedDepth(1), again):
        for found in (ours, alone):
            found["one"].policy = policy
        pair = [d["one"].generate(PROMPTS[2], max_new_tokens=7) for d in (ours, alone)]
        changed.append([(text.token_ids, text.metrics.num_draft_calls) for text in pair])
    result["policies"] = changed
    made = [ours[name].generate(PROMPTS[1], max_new_tokens=6, temperature=1.0) for name in ("one", "rows")]
    result["without a seed"] = [text.metrics.num_tokens for text in made]
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

    said["local"] = refusal(lambda: setattr(ours["one"], "policy", Local(2)))
    # more than the tree has levels, which each rank finds
    said["deep"] = refusal(lambda: setattr(ours["one"], "policy", FixedDepth(9)))
    nested = []

    def asks(ids, scores):
        with contextlib.suppress(BusyError):
            nested.append(ours["plain"].generate("x", max_new_tokens=1))
        return scores

    ours["one"].generate(PROMPTS[0], max_new_tokens=2, logits_processor=[asks])
    said["nested"] = len(nested)
    new = FixedDepth(2)

    def assigns(ids, scores):  # a policy that the others must not count as known
        with contextlib.suppress(BusyError):
            ours["rows"].policy = new
            nested.append("nothing")
        return scores

    ours["one"].generate(PROMPTS[0], max_new_tokens=2, logits_processor=[assigns])
    ours["rows"].policy = alone["rows"].policy = new
    pair = [d["rows"].generate(PROMPTS[2], max_new_tokens=7) for d in (ours, alone)]
    said["assigned"] = [len(nested), *[(text.token_ids, text.metrics.num_draft_calls) for text in pair]]
    with contextlib.suppress(UsageError):
        AutoregressiveDecoder(first.model, max_length=50)
        said["late"] = "nothing"
    said["alone"] = [refusal(call) for call in alone_on(ours["one"])]

    whole, said["interrupted"] = SummedLinear.whole, []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):

        def interrupted(self, part, number=number):  # between two exchanges
            SummedLinear.whole = whole
            os.kill(os.getpid(), number)
            return whole(self, part)

        before = signal.signal(number, signal.default_int_handler)
        SummedLinear.whole = interrupted
        try:
            ours["one"].generate(PROMPTS[0], max_new_tokens=4)
        except KeyboardInterrupt:
            text = ours["one"].generate(PROMPTS[0], max_new_tokens=6).token_ids
            said["interrupted"].append(text == alone["one"].generate(PROMPTS[0], max_new_tokens=6).token_ids)
        signal.signal(number, before)
    engine = ours["rows"].engine
    break_once(RowsEngine, _seeds)
    try:
        ours["rows"].generate(PROMPTS[0], max_new_tokens=40, temperature=1.0, seed=BREAKING)
    except RuntimeError as error:
        said["engine"] = str(error)
    pair = [d["rows"].generate(PROMPTS[0], max_new_tokens=12).token_ids for d in (ours, alone)]
    said["again"] = [pair[0] == pair[1], ours["rows"].engine is engine]
    return said


def alone_on(decoder):
    """What would wait for ranks that do not come."""
    ids = torch.tensor([[1, 2, 3]])
    return (
        lambda: profile_round(decoder.engine, prefix=8, calls=2, repeats=1),
        lambda: profile_steps(decoder.engine.steps, nodes=8, prefix=8, calls=2, repeats=1, streams=None),
        lambda: record(decoder, [[1, 2, 3]], "nowhere"),
        lambda: FullRounds(decoder, 0.0),
        lambda: decoder.model(ids),
        lambda: decoder.model.generate(ids, max_new_tokens=1),
    )


def refusal(call):
    try:
        call()
    except UsageError as error:
        return str(error)
    return "nothing"


BREAKING = 666  # a seed


def break_once(kind, text_of, name="round"):
    """Let an engine fail in the second round of a text with that seed, once."""
    real, calls = getattr(kind, name), []

    def broken(self, *args):
        calls.append(BREAKING in text_of(self))
        if calls[-1] and sum(calls) == 2:
            raise RuntimeError("planted: the engine fails")
        return real(self, *args)

    setattr(kind, name, broken)


def _seeds(engine):
    return [text.request.sampling.seed for text in engine._texts]


def graphs(rank, folder):
    """As on a GPU, where rounds are launched ahead and rows share a verification; a graph is Python that runs again.
    Rank 1 drafts other trees."""
    patch, tree = pytest.MonkeyPatch(), TreeConfig(total_tokens=16, max_calls=4)
    first = RadarDecoder.from_pretrained(device="cpu", dtype=torch.float32, tp_plan="auto", max_length=200)
    fake_graphs(patch)
    patch.setattr(build, "choose_engine", lambda name, device: "graph" if name is None else name)
    patch.setattr(plain, "capture", captured.capture)
    patch.setattr(plain, "on_stream", lambda stream, work: work())
    draft, policy = drifting(rank, first.draft)
    ours = decoders(first.model, draft, tokenizer=first.tokenizer, fallback=True, tree=tree, **policy)
    assert ours["one"].engine_name == "graphs, host loop"
    assert ours["rows"].engine_name == ours["plain"].engine_name == "graph"
    if rank:
        first.follow()
        return None
    return texts(ours, PROMPTS)


def families(rank, folder):
    """Tiny models of all families, with biases and norms of heads; rank 1 drafts other trees."""
    loaded, found = {}, {}
    from radar.target.load import load_model

    for kind in KINDS:
        path = {"path": str(Path(folder) / kind), "device": torch.device("cpu"), "dtype": torch.float32}
        loaded[kind] = load_model(**path, tp_plan="auto", progress=False)
        draft, policy = drifting(rank, tiny_draft(vocab_size=VOCAB))
        found[kind] = decoders(loaded[kind], draft, **policy)
    if rank:
        found["llama"]["one"].follow()
        return None
    prompts = [[5, 3, 2, 8], [1, 2, 3] * 7, [4]]
    result = {}
    for kind, ours in found.items():
        alone = load_model(**path | {"path": str(Path(folder) / kind)}, progress=False)
        result[kind] = [few_texts(d, prompts) for d in (ours, decoders(alone, tiny_draft(vocab_size=VOCAB)))]
    return result


def generate(rank, folder):
    assert main(["generate", PROMPTS[0], "--max-new-tokens", "16", *CALL]) == 0


def serve(rank, folder):
    assert main(SERVE) == 0
