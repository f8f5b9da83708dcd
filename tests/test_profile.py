"""The parts of a round, timed."""

import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.profile import profile_round

PROMPT = [3, 1, 4, 1, 5]


def decoder():
    return RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=FixedDepth(3), tree=TreeConfig(total_tokens=20, max_calls=5),
        max_length=200, compile=False,
    )  # fmt: skip


def test_the_parts_sum_up_to_the_round():
    profile = profile_round(decoder().engine, prefix=50, calls=4, repeats=5)
    assert len(profile.draft_calls) == 4
    assert sum(profile.parts().values()) == pytest.approx(profile.whole, rel=1e-6)
    assert profile.verify > 0
    assert profile.whole > profile.verify
    assert profile.draft_step > 0
    assert profile.to_dict()["nodes"] == 20


def test_decoding_is_right_after_profiling():
    ours = decoder()
    profile_round(ours.engine, prefix=150, calls=5, repeats=1)
    assert ours.generate(PROMPT, max_new_tokens=40).token_ids == hf_greedy(tiny_target(), PROMPT, 40)


@pytest.mark.parametrize(("prefix", "calls", "message"), [(0, 2, "prefix must"), (201, 2, "prefix"), (9, 6, "calls")])
def test_what_does_not_fit_is_refused(prefix, calls, message):
    with pytest.raises(ValueError, match=message):
        profile_round(decoder().engine, prefix=prefix, calls=calls)


def test_a_slow_part_is_seen_as_slow():
    ours = decoder()
    x, plain = torch.randn(300, 300, device=DEVICE), ours.engine.steps.accept

    def slow(tokens):
        plain(tokens)
        for _ in range(200):
            x @ x

    before = profile_round(ours.engine, prefix=50, calls=2, repeats=5)
    ours.engine.steps.accept = slow
    after = profile_round(ours.engine, prefix=50, calls=2, repeats=5)
    assert after.accept > 5 * before.accept
