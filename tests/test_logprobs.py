"""Log-probabilities: the model's own, whatever made the round, and the text is the same."""

import pytest
import torch
from decoders import PROMPT, both, make
from fake_graphs import fake_graphs, with_fake_graphs
from fakes import DEVICE, VOCAB, tiny_target
from rows_decoders import PROMPTS, make_rows

from radar.engine import build
from radar.engine.fallback import Fallback
from radar.errors import UsageError

SAMPLED = {"temperature": 0.9, "seed": 4, "top_k": 7, "repetition_penalty": 1.2}


def holds(output, prompt, count):
    """Whether the log-probabilities are those of the model's own forward over prompt and output."""
    ids = output.token_ids
    with torch.inference_mode():
        logits = tiny_target()(torch.tensor([[*prompt, *ids]], device=DEVICE)).logits[0, len(prompt) - 1 : -1]
    rows = torch.log_softmax(logits.float(), -1).cpu()
    assert [one.token for one in output.logprobs] == ids
    assert [one.logprob for one in output.logprobs] == pytest.approx(
        rows.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist(), abs=1e-4
    )
    for one, row in zip(output.logprobs, rows, strict=True):
        assert [value for _, value in one.top] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
        assert [float(row[token]) for token, _ in one.top] == pytest.approx([value for _, value in one.top], abs=1e-4)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", [0, 1], ids=["radar", "plain"])
def test_of_one_row(kind, options):
    decoder = both()[kind]
    text = decoder.generate(PROMPT, max_new_tokens=12, **options)
    assert text.logprobs is None
    watched = decoder.generate(PROMPT, max_new_tokens=12, logprobs=3, **options)
    assert watched.token_ids == text.token_ids
    holds(watched, PROMPT, 3)
    assert watched.metrics.num_host_processed_tokens == 0
    assert decoder.generate(PROMPT, max_new_tokens=3, **options).logprobs is None


@pytest.mark.parametrize("drafts", [True, False])
def test_of_a_captured_round_and_a_captured_step(monkeypatch, drafts):
    monkeypatch.setattr(Fallback, "drafts", drafts)
    decoder = make(fallback=True)
    if DEVICE.type == "cpu":
        decoder = with_fake_graphs(monkeypatch, decoder, Fallback())
    watched = decoder.generate(PROMPT, max_new_tokens=12, logprobs=2)
    holds(watched, PROMPT, 2)
    assert (watched.metrics.num_fallback_tokens == 0) == drafts


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_of_rows_beside_others(monkeypatch, kind, graphs):
    """Each has as many as it asked for, those behind and before it none, and one goes by the host."""
    if DEVICE.type == "cpu" and graphs:
        fake_graphs(monkeypatch)
    monkeypatch.setattr(build, "choose_engine", lambda *_: "graph" if graphs else "eager")
    decoder = make_rows(kind, 4)
    assert decoder.engine_name == ("graph" if graphs else "eager")
    expected = [
        decoder.generate(prompt, max_new_tokens=9 + k, seed=k, temperature=0.7) for k, prompt in enumerate(PROMPTS)
    ]
    counts = [None, 0, 3, None, 1, VOCAB, None, 2]
    for processors in ([], [lambda ids, scores: scores]):
        texts = []
        for k, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True)):
            options = {"max_new_tokens": 9 + k, "seed": k, "temperature": 0.7, "logprobs": count}
            if processors and k in (3, 4):
                options["logits_processor"] = processors
            texts.append(decoder.rounds(prompt, **options))
        for text, own, prompt, count in zip(texts, expected, PROMPTS, counts, strict=True):
            list(text)
            output = text.output(None, "")
            assert output.token_ids == own.token_ids
            if count is None:
                assert output.logprobs is None
            else:
                holds(output, prompt, count)


@pytest.mark.parametrize("wrong", [-1, True, 2.0, "3", VOCAB + 1])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(UsageError, match="logprobs is how many"):
        both()[1].rounds(PROMPT, logprobs=wrong)


@pytest.mark.parametrize("kind", ["radar", "plain"])
def test_a_text_that_fails_ends_none_beside_it(kind):
    decoder = make_rows(kind, 2)

    def fails(ids, scores):
        if ids.shape[1] > len(PROMPT) + 3:
            raise ArithmeticError("of this text alone")
        return scores

    own, other = (
        decoder.rounds(PROMPT, max_new_tokens=9, logprobs=2, **more) for more in ({}, {"logits_processor": [fails]})
    )
    with pytest.raises(ArithmeticError):
        list(other)
    assert [one.token for one in other.output(None, "").logprobs] == other.token_ids
    list(own)
    holds(own.output(None, ""), PROMPT, 2)
