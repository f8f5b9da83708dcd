"""A damaged draft checkpoint is an error that says so, or a sound head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_layouts import (
    LAYOUTS,
    head,
    load,
    same,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from radar.draft.checkpoint import LoadedDraft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import FormatError, NotFoundError

FUZZ = settings(
    deadline=None, max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(folder: Path, target_hidden_size: int = 32) -> LoadedDraft | None:
    """The loaded head, or None for an error of the announced kinds that has something to say."""
    try:
        return load(folder, target_hidden_size)
    except (ValueError, FileNotFoundError) as error:
        said, kind = str(error), type(error)
    assert kind in (FormatError, NotFoundError), f"{kind} is a kind that nobody announced"
    assert len(said) > 20
    return None


layouts = st.sampled_from(sorted(LAYOUTS))
kinds = st.sampled_from(["safetensors", "bin", "shards"])


def made(layout: str) -> tuple[Eagle3Draft, dict[str, Any], dict[str, Tensor]]:
    _, _, writer, changes = LAYOUTS[layout]
    draft = head(**changes)
    config, tensors = writer(draft)
    return draft, config, dict(tensors)


@FUZZ
@given(data=st.data(), layout=layouts, kind=kinds)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, data: st.DataObject, layout: str, kind: str) -> None:
    draft, config, tensors = made(layout)
    write(tmp_path, config, tensors, kind)
    file = data.draw(st.sampled_from(sorted(tmp_path.iterdir())))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert outcome(tmp_path, draft.config.target_hidden_size) is None


@FUZZ
@given(data=st.data(), layout=layouts, kind=kinds)
def test_a_changed_byte_is_an_error_or_a_sound_head(
    tmp_path: Path, data: st.DataObject, layout: str, kind: str
) -> None:
    """A flipped bit of a weight cannot be seen; what comes out is finite, of the right sizes, with a valid map."""
    draft, config, tensors = made(layout)
    write(tmp_path, config, tensors, kind)
    file = data.draw(st.sampled_from([path for path in sorted(tmp_path.iterdir()) if path.name != "config.json"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, min(len(content), 4000) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    loaded = outcome(tmp_path, draft.config.target_hidden_size)
    if loaded is not None:
        found = loaded.draft
        assert found.config == draft.config
        assert all(bool(torch.isfinite(parameter).all()) for parameter in found.parameters())
        targets = found.d2t + torch.arange(len(found.d2t))
        assert found.t2d.nonzero().flatten().tolist() == targets.tolist()


def damage(tensor: Tensor, how: str) -> Tensor:
    match how:
        case "flat":
            return tensor.flatten()
        case "transposed":
            square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]  # nobody can tell
            return tensor.t().contiguous() if tensor.dim() == 2 and not square else tensor[None]
        case "a row more":
            return torch.cat((tensor, tensor[:1]))
        case "a row less":
            return tensor[1:].contiguous()
        case "a column less":
            return tensor[..., 1:].contiguous()
        case "scalar":
            return tensor.flatten()[0].clone()
        case "empty":
            return tensor[:0].clone()
        case "half":
            return tensor[: max(1, len(tensor) // 2)].clone()
        case "bool" | "int8" | "int32" | "float32" | "float8_e5m2" | "complex64":
            return tensor.to(getattr(torch, how))
        case _:  # not finite
            return tensor.float().index_fill(0, torch.tensor(0), float(how))


HOW = ["flat", "transposed", "a row more", "a row less", "a column less", "scalar", "empty", "half", "bool", "int8"]
HOW += ["int32", "float32", "float8_e5m2", "complex64", "nan", "inf"]


@FUZZ
@given(data=st.data(), layout=layouts, how=st.sampled_from(HOW))
@pytest.mark.slow
def test_a_reshaped_or_retyped_tensor_is_refused(tmp_path: Path, data: st.DataObject, layout: str, how: str) -> None:
    draft, config, tensors = made(layout)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensors[name] = damage(tensors[name], how)
    loaded = outcome(write(tmp_path, config, tensors), draft.config.target_hidden_size)
    assert loaded is None or same(loaded.draft, draft), f"{name}, {how}: accepted, and it is another head"


@pytest.mark.slow
@FUZZ
@given(data=st.data(), layout=layouts, word=st.text(max_size=12))
def test_a_renamed_or_missing_tensor_is_refused(tmp_path: Path, data: st.DataObject, layout: str, word: str) -> None:
    draft, config, tensors = made(layout)
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    others = [name + word, word + name, f"model.{name}", name.replace(".0.", ".1."), name.replace("weight", "bias")]
    other = data.draw(st.sampled_from([*others, word, None, *sorted(tensors)]))
    if other is not None:
        tensors[other] = value
    loaded = outcome(write(tmp_path, config, tensors, "bin"), draft.config.target_hidden_size)
    assert loaded is None or same(loaded.draft, draft), f"{name} as {other}: accepted, and it is another head"


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**9, 2**70, 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 40), max_size=4),
    st.dictionaries(
        st.sampled_from(["rope_type", "type", "factor", "rope_theta", "x"]), st.integers(-1, 9), max_size=3
    ),
    st.sampled_from(["yarn", "llama3", "default", ["yarn"], {"rope_type": "yarn", "factor": 2.0}, {"type": {}}]),
)
KEYS = [
    *DraftConfig.__dataclass_fields__,
    *("rope_parameters", "target_layer_ids", "architectures", "hidden_act", "layer_types", "max_position_embeddings"),
    *("eagle_config", "transformer_layer_config", "speculators_model_type", "target_model_type", "tie_word_embeddings"),
    *("use_aux_hidden_state", "return_hidden_post_norm", "partial_rotary_factor", "quantization_config"),
]
FREE = {"rms_norm_eps", "rope_theta", "rope_scaling", "eagle_aux_hidden_state_layer_ids"}  # no tensor tells them
FREE |= {"norm_before_residual", "norm_output", "num_aux_hidden_states"}


@pytest.mark.slow
@settings(FUZZ, max_examples=400)
@given(data=st.data(), layout=layouts, key=st.sampled_from(KEYS), value=odd, delete=st.booleans())
def test_an_odd_config_is_refused_or_read_as_it_stands(
    tmp_path: Path, data: st.DataObject, layout: str, key: str, value: Any, delete: bool
) -> None:
    draft, config, tensors = made(layout)
    config = json.loads(json.dumps(config))
    places = [config, *[part for part in config.values() if isinstance(part, dict)]]
    place = data.draw(st.sampled_from(places))
    before = place.pop(key, None)
    if not delete:
        place[key] = value
    loaded = outcome(write(tmp_path, config, tensors), draft.config.target_hidden_size)
    if loaded is None:
        return
    for name in DraftConfig.__dataclass_fields__.keys() - FREE:
        assert getattr(loaded.draft.config, name) == getattr(draft.config, name), f"{key}={value!r} changed {name}"
    if before is None and (delete or value is None):
        assert loaded.draft.config == draft.config
    if key in ("norm_before_residual", "norm_output") and place is config and not delete and value is not None:
        assert getattr(loaded.draft.config, key) is value
