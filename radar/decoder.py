"""RadarDecoder and AutoregressiveDecoder: what a user constructs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from radar.config import TreeConfig
from radar.draft.checkpoint import head_folder, load_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.fit import check_tree
from radar.draft.narrow import check_draft_dtype
from radar.engine.ambient import ambient
from radar.engine.base import RoundEngine
from radar.engine.build import PlainRecipe, RoundRecipe, RowsRecipe
from radar.engine.plain import PlainEngine
from radar.errors import NotFoundError, UsageError
from radar.generation.base import Decoder, check_rows
from radar.policy.base import RoundSignals, StopPolicy, bound_copy
from radar.policy.fitted import AUTO, EAGLE_BEAMS, unfolded
from radar.policy.resolve import resolve_policy
from radar.target.checks import default_max_length, stock_model
from radar.target.launched import launched_ranks
from radar.target.load import load_model, load_tokenizer
from radar.target.parallel import make_local
from radar.target.ranks import own_device

__all__ = ["AutoregressiveDecoder", "RadarDecoder", "default_device"]

StrPath = str | os.PathLike[str]
MOST_ROWS, MOST_PLAIN_ROWS = 32, 128  # texts that share a round, and a token of the target alone


def default_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; None: a GPU if there is one. NotFoundError: there is no such device here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; a torch without CUDA
        here = ["cpu", *[f"cuda:{i}" for i in range(torch.cuda.device_count())]]
        raise NotFoundError(f"no device {str(name)!r} here: take one of {', '.join(here)}") from error
    return device


class RadarDecoder(Decoder[RoundEngine]):
    """Decoding whose output is the target's own, token for token, in fewer target passes.

    Args:
        model: a loaded transformers causal language model (Llama, Mistral, Qwen2, Qwen3), on one device; with PEFT
            adapters, if they change weights. One that transformers has split by `tp_plan` over the ranks of `torchrun`
            decodes on all of them: each makes this decoder, rank 0 uses it and the others `follow`. It is a plain model
            of the rank's part from then on.
        tokenizer: its tokenizer; None for token ids only.
        draft: an EAGLE-3 head for this model: a folder, or a loaded `Eagle3Draft`; or the folder that `radar fit` made
            for it, which holds a policy too.
        policy: when to stop drafting: a folder or file of a trained policy, or a `StopPolicy` such as `FixedDepth(8)`,
            which is EAGLE-3 with 10 beams. None or "auto": what `radar fit` has kept for this pair, a rule or a
            network, or `Threshold()`, which needs no training.
        tree: shape of the draft tree; None: EAGLE-3's 60 nodes on a GPU, where they cost what one token costs, 32 on a
            CPU, where every node is paid for, and as many beams as `radar fit` has kept for this pair, or EAGLE-3's 10.
            One of your own counts as it is, its beams too. What was kept for other beams goes with it where it is a
            rule, though tuned for those; a network is a UsageError there: give those beams, or another policy.
        max_length: tokens that the cache holds, prompt and output together; all memory is taken at construction.
            None: 2048, or as many as the model has positions for.
        tap_layers: `hidden_states` indices that feed the head; None: those its config names, else EAGLE-3's
            (2, N // 2, N - 3).
        engine: "graph" makes a round one CUDA graph, "eager" calls its steps from Python. None: "graph" on a GPU.
        profile: with the eager engine on a GPU, wait at every part of a round so that `metrics.seconds_by_part` is
            true.
        fallback: measure the rounds, and where drafting does not pay take plain steps of the target instead. What a
            round did then depends on the clock: pass False to compare policies or to repeat a run exactly. The text is
            the same, though in 16 bits on cards other than Hopper, where passes of other rows round differently, a tie
            may fall the other way.
        draft_dtype: of the weights that draft calls read: "int8", or the target's own dtype. None: int8 where a kernel
            reads it (16-bit heads on Hopper), for which copies are made. The text is the same.
        max_batch_size: texts that share a round, 1 to 32, of up to `max_length` tokens each; see `Decoder`. On a GPU a
            round of 4 texts makes at most 10 draft calls, of 8 at most 5, of 16 and more 3, whatever the policy says.
        cache_tokens: with several rows, tokens that all of them can hold together, prompts, output and trees, in pages
            of 64; where they run out, the newest text waits. None: as many as all can have.

    The model may change between two texts: weights, adapters, modules, type and device are what they are at the call.
    Where texts share rounds, one that is asked for behind a change waits until those under way have ended. A text whose
    adapters change while it is decoded ends with a UsageError. On a GPU a hook's tensors are part of the graphs, and
    its Python runs when those are made.

    Raises:
        UsageError: if the model's family is not supported, or the parts do not fit together.
        NotFoundError: for a draft or policy that is not there.
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
        profile: bool = False,
        fallback: bool = True,
        draft_dtype: torch.dtype | str | None = None,
        max_batch_size: int = 1,
        cache_tokens: int | None = None,
    ) -> None:
        model = make_local(stock_model(model))
        owned = not isinstance(draft, Eagle3Draft)
        draft, policy, fitted = unfolded(draft, policy)
        self._auto = None if fitted is None else fitted.policy
        if not isinstance(draft, Eagle3Draft):
            size = int(model.config.hidden_size)
            draft = load_draft(draft, target_hidden_size=size, device=model.device, dtype=model.dtype)
        max_length = default_max_length(model) if max_length is None else max_length
        self._rounds = RoundRecipe(
            draft,
            owned,
            resolve_policy(policy),
            check_tree(tree),
            max_length,
            tap_layers,
            engine,
            profile,
            fallback,
            check_draft_dtype(draft_dtype),
            EAGLE_BEAMS if fitted is None else fitted.beams,
        )
        check_rows(max_batch_size, cache_tokens, MOST_ROWS)
        if profile and max_batch_size > 1:
            raise UsageError("profile=True takes the times of one text's rounds: leave max_batch_size out")
        recipe: Any = self._rounds if max_batch_size == 1 else RowsRecipe(self._rounds, max_batch_size, cache_tokens)
        super().__init__(model, recipe, tokenizer=tokenizer, max_length=max_length, max_batch_size=max_batch_size)

    @property
    def tree(self) -> TreeConfig:
        """Shape of the draft trees."""
        return self._rounds.tree_on(self.model.device)

    @classmethod
    def from_pretrained(
        cls,
        target: StrPath | None = None,
        draft: StrPath | None = None,
        policy: StopPolicy | StrPath | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        tp_plan: str | None = None,
        **options: Any,
    ) -> RadarDecoder:
        """Load everything from folders; without arguments, the pair that ships inside the package.

        Args:
            target: folder or hub name of the model and its tokenizer, or folder of a PEFT adapter; None: the embedded
                pair.
            draft: folder of the EAGLE-3 head, or of `radar fit`; needed with a target of your own.
            policy: as in the constructor; None with the embedded pair: its own trained policy.
            device: None: a GPU if there is one. Of a split target "cuda" is each process's own GPU.
            dtype: None: the checkpoint's own; the embedded pair runs in float32 on a CPU.
            tp_plan: "auto" splits the target over the processes of `torchrun`, each with a device of its own, by
                transformers' plan for the model; with one process it is whole. None: each process has all of it.
            options: the constructor's other arguments.
        """
        if tp_plan not in (None, "auto"):
            raise UsageError(
                f'tp_plan must be "auto", the plan that transformers has for the model, got {tp_plan!r:.80}'
            )
        split = tp_plan if launched_ranks() > 1 else None
        place = default_device(own_device(device) if split else device)
        embedded = target is None
        if target is None:
            if draft is not None:
                raise UsageError("a draft head belongs to its target: pass target= as well")
            assets = Path(str(files("radar"))) / "assets"
            target, draft = assets / "target", assets / "draft"
            own = resolve_policy(assets / "policy")
            policy = own if policy in (None, AUTO) else policy
            dtype = dtype or (torch.float32 if place.type == "cpu" else None)
        elif draft is None:
            raise UsageError("pass draft=, the folder of an EAGLE-3 head that was trained for this target")
        if not isinstance(draft, Eagle3Draft):
            head_folder(unfolded(draft, policy)[0])  # first: a large target takes minutes
        model = load_model(str(target), device=place, dtype=dtype, tp_plan=split, progress=not embedded)
        decoder = cls(model, tokenizer=load_tokenizer(str(target)), draft=draft, policy=policy, **options)
        if embedded:
            decoder._auto = own
        return decoder

    @property
    def draft(self) -> Eagle3Draft:
        """The draft head."""
        return self._rounds.draft

    @property
    def policy(self) -> StopPolicy:
        """The stop policy; another one, in any of the constructor's forms, decides from the next text on."""
        return self._rounds.policy

    @policy.setter
    def policy(self, value: StopPolicy | StrPath | None) -> None:
        if self._follower is not None:
            raise self._follower.refusal()
        policy = resolve_policy(self._auto if value in (None, AUTO) and self._auto is not None else value)
        kept = self._kept
        with kept.taking_turn(), ambient(device := self.model.device):
            kept.order.follow(device)
            if kept.made is not None:
                kept.made.set_policy(policy)
            else:  # the next one is made with it
                nothing = torch.zeros(1, dtype=torch.int64, device=device)
                bound_copy(policy, RoundSignals(nothing, nothing), self.tree)
            self._rounds.policy = policy
            kept.has_changed = True


class AutoregressiveDecoder(Decoder[PlainEngine]):
    """The baseline: the target alone, one token a pass, through the same cache, attention and graphs as RadarDecoder.

    Args:
        model: a loaded transformers causal language model of a supported family.
        tokenizer: its tokenizer; None for token ids only.
        max_length: tokens that the cache holds, prompt and output together; None: 2048, or the model's positions.
        engine, cache_tokens: as for RadarDecoder.
        max_batch_size: likewise, 1 to 128.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        engine: str | None = None,
        max_batch_size: int = 1,
        cache_tokens: int | None = None,
    ) -> None:
        model = make_local(stock_model(model))
        max_length = default_max_length(model) if max_length is None else max_length
        recipe: Any = PlainRecipe(max_length, engine)
        check_rows(max_batch_size, cache_tokens, MOST_PLAIN_ROWS)
        if max_batch_size > 1:
            recipe = RowsRecipe(recipe, max_batch_size, cache_tokens)
        super().__init__(model, recipe, tokenizer=tokenizer, max_length=max_length, max_batch_size=max_batch_size)
