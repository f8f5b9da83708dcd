"""Folders of PEFT adapters, as `save_pretrained` of a PEFT model writes them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from radar.errors import UsageError
from radar.target.adapters import check_adapters

__all__ = ["base_of", "with_adapter"]

_CONFIG = "adapter_config.json"


def base_of(path: str) -> str | None:
    """The model that the adapter in a folder was trained on; None: the folder, or hub name, holds no adapter.

    Raises:
        UsageError: for an adapter that does not decode, one that names no model, or a folder whose adapters lie in
            folders of their own.
    """
    if not Path(path, _CONFIG).is_file():
        named = sorted(file.parent.name for file in Path(path).glob(f"*/{_CONFIG}"))
        if named and not Path(path, "config.json").is_file():
            raise UsageError(
                f"{path!r} holds several adapters, each in a folder of its own: give one of them, such as "
                f"{str(Path(path, named[0]))!r} (there are {', '.join(named)}), or load them with PEFT and pass the "
                "model to RadarDecoder"
            )
        return None
    if find_spec("peft") is None:
        raise UsageError(f'{path!r} holds an adapter, and peft is missing: pip install "peft>=0.18"')
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(path)
    except Exception as error:  # another kind of file, a kind of adapter that this PEFT does not know
        raise UsageError(f"{path!r}: {_CONFIG} is no adapter's that this PEFT can read ({error})") from error
    check_adapters({path: config})
    if not config.base_model_name_or_path:
        raise UsageError(
            f"{path!r}: {_CONFIG} does not say which model the adapter was trained on: put its folder or hub name "
            "there, as base_model_name_or_path"
        )
    base = str(config.base_model_name_or_path)
    if Path(base, _CONFIG).is_file():
        raise UsageError(
            f"{path!r}: the adapter's base model {base!r} is a folder that holds an adapter itself: merge that one "
            "(PEFT's merge_and_unload), save the result elsewhere, and name it in base_model_name_or_path"
        )
    return base


def with_adapter(model: Any, path: str) -> Any:
    """A stock model with a folder's adapter in its layers, all of it.

    By PEFT, since transformers does not load every kind whole (5.24 leaves DoRA's magnitudes out).

    Raises:
        UsageError: the adapter's weights are not there, or not those that its config and the model ask for.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        wrapped = PeftModel.from_pretrained(model, path)
        wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
        found = load_peft_weights(path, device="cpu").keys()
    except Exception as error:  # each library has its own
        raise UsageError(
            f"the adapter in {path!r} does not go into its base model: take the model that it was trained on, and the "
            f"folder whole ({error})"
        ) from error
    whole = wrapped.state_dict().keys()
    for what, names in (("missing", wanted - found), ("unknown to the model", found - wanted - whole)):
        if names:
            raise UsageError(
                f"{path!r}: {_CONFIG}, the adapter's weights and the base model do not belong together: {len(names)} "
                f"tensors are {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
            )
    return wrapped.get_base_model()
