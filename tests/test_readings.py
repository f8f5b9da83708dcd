"""The readings of a head's file that are worth measuring."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import tiny_draft, tiny_target

from radar.draft.scaling import RopeScaling
from radar.tools.readings import plausible_readings, target_rope, with_taps

CONFIG = with_taps(tiny_draft().config, 9)  # taps 2, 4, 6


def test_readings_of_a_plain_head():
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=None)
    readings = plausible_readings(config, num_layers=10, rope=(5e5, None))
    assert readings[0] == with_taps(config, 10)
    taps = [r.eagle_aux_hidden_state_layer_ids for r in readings]
    assert taps == [t for t in [(2, 5, 7), (1, 4, 6), (3, 6, 8)] for _ in range(2)]
    assert [r.rope_theta for r in readings] == [1e4, 5e5] * 3
    assert len(set(readings)) == len(readings)


def test_readings_of_a_head_that_says_more():
    scaled = (5e5, RopeScaling(rope_type="linear", factor=2.0))
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(1, 4, 7), rope_theta=1e6, norm_output=True)
    readings = plausible_readings(config, num_layers=9, rope=scaled, doubtful=["norm_output", "rope_theta"])
    assert {r.eagle_aux_hidden_state_layer_ids for r in readings} == {(1, 4, 7), (2, 4, 6), (0, 3, 6), (2, 5, 8)}
    assert {(r.rope_theta, r.rope_scaling) for r in readings} == {(1e6, None), scaled, (1e4, None)}
    assert {r.norm_output for r in readings} == {True, False}
    assert {r.norm_before_residual for r in readings} == {False}
    assert len(readings) == 4 * 3 * 2
    assert readings[0] == config


def test_taps_that_the_target_lacks_are_left_out():
    config = replace(CONFIG, eagle_aux_hidden_state_layer_ids=(2, 5, 9))
    taps = {r.eagle_aux_hidden_state_layer_ids for r in plausible_readings(config, num_layers=9, rope=None)}
    assert taps == {(2, 4, 6), (1, 4, 8)}
    with pytest.raises(ValueError, match=r"taps \[2, 30\] .* do not exist in a target of 9 layers"):
        plausible_readings(
            replace(CONFIG, num_aux_hidden_states=2, eagle_aux_hidden_state_layer_ids=(2, 30)), num_layers=9, rope=None
        )


def test_the_targets_rope():
    assert target_rope(tiny_target().config) == (10000.0, None)
    llama = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    found = target_rope(tiny_target(rope_parameters=llama).config)
    assert found is not None
    assert (found[0], found[1].rope_type, found[1].factor) == (5e5, "llama3", 8.0)
    assert (
        target_rope(SimpleNamespace(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2})) is None
    )
