"""Draft heads on disk: any published layout in, SafeAILab's or speculators' out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from radar.draft.checkpoint_files import read_json, read_tensors
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.formats import DraftFormat, canonical_names, recognise
from radar.draft.other_kinds import refuse_other_kinds
from radar.draft.reading import read_config
from radar.draft.vocabulary import read_vocabulary
from radar.errors import FormatError, NotFoundError, UsageError

__all__ = ["LoadReport", "LoadedDraft", "head_folder", "load_draft", "load_draft_with_report", "save_draft"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint was read; `str` of it is for people.

    Attributes:
        format: a name of `radar.draft.formats.FORMATS`.
        used: tensors of the file that the head holds.
        unused: tensors of the file, and keys of its config, that play no part.
        assumed: a sentence for each choice that the file did not make.
        doubtful: fields of `DraftConfig` that those sentences leave open; `radar doctor` measures the alternatives.
        made_for: the target that the file names, if it names one.
    """

    format: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    assumed: tuple[str, ...]
    doubtful: tuple[str, ...]
    made_for: str | None

    def __str__(self) -> str:
        made = "" if self.made_for is None else f", made for {self.made_for}"
        lines = [f"draft head of the {self.format} format, {len(self.used)} tensors used{made}"]
        lines += [f"  assumed: {sentence}" for sentence in self.assumed]
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused)}")
        return "\n".join(lines)


class LoadedDraft(NamedTuple):
    """A head, and how its file was read."""

    draft: Eagle3Draft
    report: LoadReport


def head_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path, before anything else is loaded.

    Raises:
        UsageError: for what is no folder.
        NotFoundError: names what is not there.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UsageError(
            f"draft must be the folder of an EAGLE-3 head, or an Eagle3Draft, got {folder!r}"
            + (": to decode without one, take AutoregressiveDecoder" if folder is None else "")
        )
    path = Path(folder)
    if path.is_file():
        raise UsageError(f"draft must be the folder of an EAGLE-3 head, got the file {path}: give {path.parent}")
    if not (path / "config.json").is_file():
        raise NotFoundError(f"no draft head in {path}: config.json is missing")
    return path


def load_draft(
    folder: str | os.PathLike[str], *, target_hidden_size: int, device: torch.device, dtype: torch.dtype
) -> Eagle3Draft:
    """Load a published EAGLE-3 head, strictly; see `load_draft_with_report`."""
    return load_draft_with_report(folder, target_hidden_size=target_hidden_size, device=device, dtype=dtype).draft


def load_draft_with_report(
    folder: str | os.PathLike[str],
    *,
    target_hidden_size: int,
    device: torch.device,
    dtype: torch.dtype,
    strict: bool = True,
) -> LoadedDraft:
    """Load a published EAGLE-3 head and say how it was read. The format is recognised by its contents.

    To override what a file says, edit its `config.json`: keys at the top win, and
    `eagle_aux_hidden_state_layer_ids` there are `hidden_states` indices in every format.

    Args:
        folder: holds `config.json` and the tensors: `model.safetensors`, shards with an index, or `pytorch_model.bin`.
        target_hidden_size: of the model whose features the head reads; the file may leave it out.
        device, dtype: where and in what the head will run.
        strict: refuse a file that leaves a choice open on which readers disagree; False takes the default and reports
            it as doubtful.

    Raises:
        NotFoundError: names the file that is not there.
        FormatError: for a file that cannot be read, or lists every tensor that is unknown, missing or ill-shaped.
    """
    path = head_folder(folder)
    values = read_json(path / "config.json")
    tensors = read_tensors(path)
    try:
        refuse_other_kinds(values, tensors)
        entry = recognise(values, tensors)
        names = canonical_names(tensors)
        state = {short: tensors[name] for name, short in names.items()}
        reading = read_config(entry, values, state, target_hidden_size=target_hidden_size, strict=strict)
    except ValueError as error:
        raise FormatError(f"the draft head in {path} cannot be used: {error}") from error
    state, assumed = _complete(entry, state, reading.config, values)
    with torch.device("meta"):  # sizes that a wrong config names cost nothing
        draft = Eagle3Draft(reading.config)
    targets, sentence, problems = read_vocabulary(
        state, vocab_size=reading.config.vocab_size, draft_vocab_size=reading.config.draft_vocab_size
    )
    problems = _check(state, draft) + problems
    if problems:
        raise FormatError(f"the draft head in {path} does not fit its config.json:\n  " + "\n  ".join(problems))
    draft.to_empty(device="cpu").load_state_dict({**state, "d2t": draft.d2t, "t2d": draft.t2d})
    draft.set_draft_vocabulary(targets)
    unused = sorted(tensors.keys() - names.keys()) + [f"config.json: {key}" for key in reading.ignored]
    report = LoadReport(
        format=entry.name,
        used=tuple(sorted(names)),
        unused=tuple(unused),
        assumed=(*reading.assumed, *assumed, *([sentence] if sentence else [])),
        doubtful=reading.doubtful,
        made_for=reading.made_for,
    )
    return LoadedDraft(draft.to(device=device, dtype=dtype).eval().requires_grad_(False), report)


def save_draft(
    draft: Eagle3Draft,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    layout: Literal["safeailab", "speculators"] = "safeailab",
) -> None:
    """Write `config.json` and `model.safetensors`, weights in `dtype`.

    The `safeailab` layout is flat and names the layer `midlayer`; the `speculators` layout nests the layer's config and
    names it `layers.0`. Both load back to an equal head.
    """
    if layout not in ("safeailab", "speculators"):
        raise UsageError(f"layout must be 'safeailab' or 'speculators', got {layout!r}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in draft.state_dict().items()
    }
    config = draft.config.to_dict()
    if layout == "speculators":
        state = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in state.items()}
        config = _speculators_config(draft.config)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_SPECULATORS_TOP = (
    "draft_vocab_size",
    "target_hidden_size",
    "eagle_aux_hidden_state_layer_ids",
    "norm_output",
    "norm_before_fc",
    "fc_norm",
    "own_embedding",
    "qk_norm",
    "tie_word_embeddings",
)


def _speculators_config(config: DraftConfig) -> dict[str, Any]:
    """`config.json` as speculators 0.4 writes it: the layer's own keys nested, the head's at the top."""
    flat = config.to_dict()
    top = {key: flat.pop(key) for key in _SPECULATORS_TOP if key in flat}
    del flat["architectures"]
    flat.pop("norm_before_residual", None)
    flat["model_type"] = "qwen3" if config.qk_norm else "llama"
    greedy = {"proposal_type": "greedy", "speculative_tokens": 3, "accept_tolerance": 0.0, "verifier_accept_k": 1}
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [greedy],
            "verifier": {"name_or_path": None, "architectures": []},
        },
        "norm_before_residual": config.norm_before_residual,
        **top,
        "transformer_layer_config": flat,
    }


def _complete(
    entry: DraftFormat, state: dict[str, Tensor], config: DraftConfig, values: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """Drop what drafting does not need of a tensor, and fill in one that a tied file leaves out."""
    assumed = []
    fc, embedding = state.get("fc.weight"), state.get("embed_tokens.weight")
    if fc is not None and fc.dim() == 2 and 0 < fc.shape[0] - config.hidden_size <= entry.max_extra_fc_rows:
        assumed.append(f"the last {fc.shape[0] - config.hidden_size} rows of fc.weight are exit signals: not used")
        state = {**state, "fc.weight": fc[: config.hidden_size].contiguous()}
    if "lm_head.weight" not in state and embedding is not None and values.get("tie_word_embeddings") is True:
        assumed.append("lm_head.weight is missing and tied: the head's own embedding")
        state = {**state, "lm_head.weight": embedding}
    if config.attention_bias and (bias := "midlayer.self_attn.o_proj.bias") not in state:
        assumed.append("queries, keys and values have biases and o_proj has none: zero")
        state = {**state, bias: torch.zeros(config.hidden_size)}
    return state, assumed


def _check(state: Mapping[str, Tensor], draft: Eagle3Draft) -> list[str]:
    """Tensors that are unknown, missing, ill-shaped, of a wrong type or not finite; the maps are checked elsewhere."""
    expected = {name: tensor for name, tensor in draft.state_dict().items() if name not in ("d2t", "t2d")}
    given = state.keys() - {"d2t", "t2d"}
    problems = [f"unknown {name} {list(state[name].shape)}" for name in sorted(given - expected.keys())]
    for name in sorted(expected.keys() - given):
        hint = "; heads that borrow the target's are not supported: copy it in" if name == "lm_head.weight" else ""
        problems.append(f"missing {name} {list(expected[name].shape)}{hint}")
    for name in sorted(given & expected.keys()):
        found, wanted = state[name], expected[name]
        if found.shape != wanted.shape:
            problems.append(f"{name} has shape {list(found.shape)}, expected {list(wanted.shape)}")
        elif found.dtype not in _FLOATS:
            problems.append(f"{name} has type {found.dtype}, expected floating-point numbers of 16 bits or more")
        elif not bool(torch.isfinite(found).all()):
            problems.append(f"{name} holds values that are not finite")
    return problems
