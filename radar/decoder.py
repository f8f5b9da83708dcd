"""RadarDecoder: lossless speculative decoding with a stop policy, for any supported target and EAGLE-3 head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from radar.config import TreeConfig
from radar.draft.checkpoint import load_draft
from radar.draft.drafter import Drafter
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.fit import TargetSizes, check_fit
from radar.engine.choose import choose_engine
from radar.engine.eager import EagerEngine
from radar.engine.fallback import Fallback
from radar.engine.graph import GraphEngine
from radar.engine.prefill import chunk_sizes
from radar.errors import UsageError
from radar.generation.base import Decoder, end_token_ids
from radar.generation.request import Request
from radar.metrics import Round
from radar.policy.base import StopPolicy, Threshold
from radar.policy.lstm import RadarPolicy
from radar.target.load import load_model, load_tokenizer
from radar.target.model import TargetModel, default_max_length

__all__ = ["RadarDecoder", "default_device", "default_tree"]

StrPath = str | os.PathLike[str]


def default_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; None: a GPU if there is one. ValueError: there is no such device here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a torch without CUDA
        here = ["cpu", *[f"cuda:{i}" for i in range(torch.cuda.device_count())]]
        raise UsageError(f"no device {str(name)!r} here: take one of {', '.join(here)}") from error
    return device


def default_tree(device: torch.device) -> TreeConfig:
    """EAGLE-3's 60 nodes on a GPU, where they cost what one token costs; 32 on a CPU, where every node is paid for."""
    return TreeConfig() if device.type == "cuda" else TreeConfig(total_tokens=32)


class RadarDecoder(Decoder):
    """Decoding whose output is the target's own, token for token, in fewer target passes.

    Args:
        model: a loaded transformers causal language model (Llama, Mistral, Qwen2, Qwen3), on one device.
        tokenizer: its tokenizer; None for token ids only.
        draft: an EAGLE-3 head for this model: a folder, or a loaded `Eagle3Draft`.
        policy: when to stop drafting: a folder or file of a trained policy, or a `StopPolicy` such as `FixedDepth(8)`,
            which is EAGLE-3. None: `Threshold()`, which needs no training.
        tree: shape of the draft tree; None: `default_tree` for the device.
        max_length: tokens that the cache holds, prompt and output together; all memory is taken at construction.
            None: 2048, or as many as the model has positions for.
        tap_layers: `hidden_states` indices that feed the head; None: those its config names, else EAGLE-3's
            (2, N // 2, N - 3).
        engine: "graph" makes a round one CUDA graph, "eager" calls its steps from Python. None: "graph" on a GPU.
        compile: with the graph engine, let torch.compile make the forwards: faster rounds for a slower start. What it
            makes is kept on disk for the next start.
        profile: with the eager engine on a GPU, wait at every part of a round so that `metrics.seconds_by_part` is
            true.
        fallback: measure the rounds, and where drafting does not pay take plain steps of the target instead. What a
            round did then depends on the clock: pass False to compare policies or to repeat a run exactly. The text is
            the same, though in 16 bits, where passes of other rows round differently, a tie may fall the other way.

    Raises:
        ValueError: if the model's family is not supported, or the parts do not fit together.
        FileNotFoundError: for a draft or policy that is not there.
    """

    def __init__(
        self,
        model: Any,
        *,
        draft: Eagle3Draft | StrPath,
        tokenizer: Any = None,
        policy: StopPolicy | StrPath | None = None,
        tree: TreeConfig | None = None,
        max_length: int | None = None,
        tap_layers: Sequence[int] | None = None,
        engine: str | None = None,
        compile: bool = True,
        profile: bool = False,
        fallback: bool = True,
    ) -> None:
        graphs = choose_engine(engine, model.device) == "graph"
        tree = tree or default_tree(model.device)
        max_length = default_max_length(model) if max_length is None else max_length
        if not isinstance(draft, Eagle3Draft):
            size = int(model.config.hidden_size)
            draft = load_draft(draft, target_hidden_size=size, device=model.device, dtype=model.dtype)
        if tap_layers is None:
            tap_layers = draft.config.eagle_aux_hidden_state_layer_ids
        rows = max(chunk_sizes(model.device))
        target = TargetModel(
            model,
            max_length=max_length,
            max_rows=max(tree.total_tokens, rows),
            tap_layers=tap_layers,
            compile=graphs and compile,
        )
        check_fit(draft, _sizes(target), tree)
        if policy is None:
            policy = Threshold()
        elif isinstance(policy, str | os.PathLike):
            policy = RadarPolicy(policy)
        drafter = Drafter(
            draft,
            target.embed_tokens if draft.embed_tokens is None else draft.embed_tokens,
            tree,
            max_length=max_length,
            max_rows=rows,
            compile=graphs and compile,
        )
        self.engine: EagerEngine | GraphEngine
        if graphs:
            with torch.inference_mode():
                self.engine = GraphEngine(target, drafter, policy, tree, fallback=Fallback() if fallback else None)
        else:
            self.engine = EagerEngine(
                target, drafter, policy, tree, profile=profile, fallback=Fallback() if fallback else None
            )
        self._running: EagerEngine | GraphEngine = self.engine
        self._host_engine: EagerEngine | None = None
        self.engine_name = self.engine.name
        self.tree = tree
        super().__init__(
            model,
            tokenizer=tokenizer,
            eos_token_ids=end_token_ids(model, tokenizer),
            max_length=max_length,
            vocab_size=target.vocab_size,
        )

    @classmethod
    def from_pretrained(
        cls,
        target: StrPath | None = None,
        draft: StrPath | None = None,
        policy: StopPolicy | StrPath | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> RadarDecoder:
        """Load everything from folders; without arguments, the pair that ships inside the package.

        Args:
            target: folder or hub name of the model and its tokenizer; None: the embedded pair.
            draft: folder of the EAGLE-3 head; needed with a target of your own.
            policy: as in the constructor; None with the embedded pair: its own trained policy.
            device: None: a GPU if there is one.
            dtype: None: the checkpoint's own; the embedded pair runs in float32 on a CPU.
            options: the constructor's other arguments.
        """
        place = default_device(device)
        embedded = target is None
        if target is None:
            if draft is not None:
                raise UsageError("a draft head belongs to its target: pass target= as well")
            assets = Path(str(files("radar"))) / "assets"
            target, draft = assets / "target", assets / "draft"
            policy = assets / "policy" if policy is None else policy
            dtype = dtype or (torch.float32 if place.type == "cpu" else None)
        elif draft is None:
            raise UsageError("pass draft=, the folder of an EAGLE-3 head that was trained for this target")
        model = load_model(str(target), device=place, dtype=dtype, progress=not embedded)
        return cls(model, tokenizer=load_tokenizer(str(target)), draft=draft, policy=policy, **options)

    @property
    def policy(self) -> StopPolicy:
        """The stop policy; assign another one to compare on the same caches."""
        return self.engine.policy

    @policy.setter
    def policy(self, policy: StopPolicy) -> None:
        self.engine.set_policy(policy)

    def _start(self, request: Request) -> Round:
        ids = torch.tensor([request.input_ids], device=self.engine.target.device)
        if request.processing is None:
            self._running = self.engine
            return self.engine.start(ids, request.sampling, reuse_prefix=request.reuse_prefix)
        host = self._running = self._driven_by_host()
        return host.start(ids, request.sampling, reuse_prefix=request.reuse_prefix, processing=request.processing)

    def _driven_by_host(self) -> EagerEngine:
        """The engine for processors on the host, on the caches of the other one."""
        engine = self.engine
        if isinstance(engine, EagerEngine):
            return engine
        engine.discard()
        if self._host_engine is None:
            self._host_engine = EagerEngine(engine.target, engine.drafter, engine.policy, self.tree)
        self._host_engine.held = engine.held
        self._host_engine.set_policy(engine.policy)
        return self._host_engine

    def _round(self) -> Round:
        return self._running.round()

    def _ahead(self) -> None:
        self._running.ahead()

    def _release(self) -> None:
        if isinstance(self._running, EagerEngine):
            self._running.release()


def _sizes(target: TargetModel) -> TargetSizes:
    rows = len(target.embed_tokens.weight)  # type: ignore[arg-type]  # of an embedding it is a tensor
    return TargetSizes(target.hidden_size, target.vocab_size, rows, target.tap_layers, target.device, target.dtype)
