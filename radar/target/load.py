"""Targets and tokenizers from folders, hub names and GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from radar.errors import UsageError
from radar.target.adapter_folder import base_of, with_adapter
from radar.target.checks import check_known
from radar.target.parallel import check_split, make_local
from radar.target.quantised import KINDS, check_packages, kind_of, settle, unify
from radar.target.ranks import join_ranks

__all__ = ["load_model", "load_tokenizer"]


def load_model(
    path: str,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    tp_plan: str | None = None,
    progress: bool = True,
) -> Any:
    """`AutoModelForCausalLM` in eval mode on one device; dtype None keeps the checkpoint's, of a GGUF file what
    transformers unpacks it to. With a `tp_plan` it is this rank's part of it, and every rank has to load it. Of a
    folder with a PEFT adapter it is the base model that the adapter names, with the adapter in its layers."""
    if tp_plan is not None and find_spec("accelerate") is None:  # transformers places the parts by it
        raise UsageError('accelerate is missing, for a model on several devices: pip install "radar-decoding[scale]"')
    if tp_plan is not None and Path(path, "adapter_config.json").is_file():
        raise UsageError(
            f"{path!r} holds adapters: merge the adapters first (PEFT's merge_and_unload), and give the folder of the "
            "merged model: a split model takes none"
        )
    base = base_of(path)
    whole = path if base is None else base
    ranks = None if tp_plan is None else join_ranks(device)
    bars: Any = logging  # its functions have no annotations
    shown = bars.is_progress_bar_enabled()
    if not progress or (ranks is not None and ranks.rank):
        bars.disable_progress_bar()
    try:
        name, how = _source(whole)
        plan: Any = tp_plan
        config = _known_config(whole)  # before its weights are loaded
        kind = kind_of(config)
        if "gguf_file" in how:
            how["quantization_config"] = GgufConfig(dequantize=True)  # in its blocks, few rows are rounded unlike many
        if kind is not None:
            check_packages(kind)
            how["device_map"] = {"": device}  # some quantise or unpack there, and cannot be moved
        if ranks is not None:
            from transformers.distributed.configuration_utils import DistributedConfig

            if kind is not None or "gguf_file" in how:
                raise UsageError(
                    f"{whole!r} is quantised, and no such model is split over several cards: use it on one"
                )
            check_split(config, ranks.size)
            how["distributed_config"] = DistributedConfig(tp_plan=plan, tp_size=ranks.size)
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto", output_loading_info=True, **how)
        model, found = loaded
        _check_whole(whole, found)
        if kind is not None:
            _check_dtype(whole, model, dtype)
            if kind is KINDS["mxfp4"]:
                unify(model)
            settle(model.eval())
    except UsageError:
        raise
    except Exception as error:  # no such model, another kind of file, one that is cut off: each library has its own
        raise UsageError(
            f"no transformers model at {path!r} that can be loaded: give a folder, a hub name or a GGUF file ({error})"
            if base is None
            else f"the base model {base!r} of the adapter in {path!r} cannot be loaded: put the folder or hub name of "
            f"the model that it was trained on into adapter_config.json, as base_model_name_or_path ({error})"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    if ranks is not None and model.device.type != device.type:
        raise UsageError(
            f"transformers has put the ranks' parts on {model.device.type} and not on {device.type}: hide what they "
            "are not to be on (CUDA_VISIBLE_DEVICES=), or leave device= out"
        )
    if base is not None:
        model = with_adapter(model, path)
    return (make_local(model).to(device) if kind is None else model).eval()


def _source(path: str) -> tuple[str, dict[str, Any]]:
    """What transformers calls it: a folder or a hub name, and of a GGUF file its name in there."""
    file = Path(path)
    if file.suffix != ".gguf" or file.is_dir():
        return path, {}
    if not file.is_file():
        raise UsageError(f"no GGUF file at {path!r}")
    return str(file.parent), {"gguf_file": file.name}


def _known_config(path: str) -> Any:
    """The config of a model that decodes here, from its folder or its GGUF file."""
    name, how = _source(path)
    try:
        config = AutoConfig.from_pretrained(name, **how)
    except (ImportError, ValueError, KeyError) as error:
        if not how:
            raise
        if isinstance(error, ImportError):
            raise UsageError(f'gguf is missing, to read {path!r}: pip install "radar-decoding[gguf]"') from error
        raise UsageError(
            f"{path!r} is no GGUF file of an architecture that transformers reads ({error}): use one of a Llama, "
            "Mistral or Qwen model, say, or the model's own folder"
        ) from error
    check_known(config)
    return config


def _check_dtype(path: str, model: Any, dtype: torch.dtype | None) -> None:
    if dtype is not None and model.dtype != dtype:
        raise UsageError(
            f"{path!r} is quantised, and its library loads it as {model.dtype} where {dtype} is asked for: leave the "
            "dtype out"
        )


def _check_whole(path: str, found: Mapping[str, Any]) -> None:
    """Raise UsageError for weights that are not those of the config, where transformers makes up random ones.

    Args:
        found: transformers' loading info.
    """
    left = sorted(str(name) for name in found.get("unexpected_keys", ()))
    wrong = {
        "are missing": sorted(str(name) for name in found.get("missing_keys", ())),
        "have another shape": sorted(str(one) for one in found.get("mismatched_keys", ())),
        "are of quantised weights, which the config says nothing of": [x for x in left if x.endswith(_QUANTISED)],
    }
    for what, names in wrong.items():
        if names:
            raise UsageError(
                f"{path!r}: config.json and the weights are not of one model: {len(names)} tensors {what} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); get both from the same place"
            )


_QUANTISED = (  # of weights, not of a cache: what transformers would leave out, and take the numbers as they are
    ".weight_scale", ".weight_scales", ".weight_scale_inv", ".weight_packed", ".weight_zero_point", ".qweight",
    ".qzeros", ".SCB", ".absmax", "_weight_qdata", "_proj_blocks", "_proj_scales",
)  # fmt: skip


def load_tokenizer(path: str) -> Any:
    """The tokenizer stored beside a model, or in its GGUF file; beside an adapter, or else beside its base model."""
    base = base_of(path)
    if base is not None and not Path(path, "tokenizer_config.json").is_file():
        path = base
    name, how = _source(path)
    try:
        return AutoTokenizer.from_pretrained(name, **how)
    except Exception as error:
        raise UsageError(f"no tokenizer at {path!r}: its files belong beside the model's ({error})") from error
