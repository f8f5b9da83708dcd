"""Targets and tokenizers from folders and hub names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from radar.errors import UsageError
from radar.target.adapter_folder import base_of, with_adapter
from radar.target.checks import check_known
from radar.target.parallel import check_split, make_local
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
    """`AutoModelForCausalLM` in eval mode on one device; dtype None keeps the checkpoint's. With a `tp_plan` it is this
    rank's part of it, and every rank has to load it. Of a folder with a PEFT adapter it is the base model that the
    adapter names, with the adapter in its layers."""
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
        how: dict[str, Any] = {"output_loading_info": True}
        plan: Any = tp_plan
        check_known(AutoConfig.from_pretrained(whole))  # before its weights are loaded
        if ranks is not None:
            from transformers.distributed.configuration_utils import DistributedConfig

            check_split(AutoConfig.from_pretrained(whole), ranks.size)
            how["distributed_config"] = DistributedConfig(tp_plan=plan, tp_size=ranks.size)
        loaded: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=dtype or "auto", **how)
        model, found = loaded
        _check_whole(whole, found)
    except UsageError:
        raise
    except Exception as error:  # no such model, another kind of file, one that is cut off: each library has its own
        raise UsageError(
            f"no transformers model at {path!r} that can be loaded: give a folder or a hub name ({error})"
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
    return make_local(model).to(device).eval()


def _check_whole(path: str, found: Mapping[str, Any]) -> None:
    """Raise UsageError for weights that are not those of the config, where transformers makes up random ones.

    Args:
        found: transformers' loading info.
    """
    wrong = {
        "are missing": sorted(str(name) for name in found.get("missing_keys", ())),
        "have another shape": sorted(str(one) for one in found.get("mismatched_keys", ())),
    }
    for what, names in wrong.items():
        if names:
            raise UsageError(
                f"{path!r}: config.json and the weights are not of one model: {len(names)} tensors {what} "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); get both from the same place"
            )


def load_tokenizer(path: str) -> Any:
    """The tokenizer stored beside a model; beside an adapter, or else beside its base model."""
    base = base_of(path)
    if base is not None and not Path(path, "tokenizer_config.json").is_file():
        path = base
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise UsageError(f"no tokenizer at {path!r}: its files belong beside the model's ({error})") from error
