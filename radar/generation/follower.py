"""One model on several ranks: rank 0 decodes what it is asked for, and the others follow it, call by call."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radar.engine.ambient import ambient
from radar.engine.base import BatchEngine, Engine
from radar.engine.build import RowsRecipe
from radar.engine.channel import Channel, Message, Op
from radar.engine.leader import LeadingEngine, LeadingRows, OwnRequest, ToldRequest, agree, leading
from radar.engine.sampler import Sampler
from radar.errors import RanksError, UsageError
from radar.generation.kept import Kept, Recipe
from radar.generation.request import Request
from radar.metrics import Round
from radar.target.turn import Turn

__all__ = ["Follower", "LeadingRecipe", "shared_recipe"]


def shared_recipe(recipe: Recipe[Any]) -> Recipe[Any]:
    """A decoder's recipe where ranks share the model. Every rank takes one for each of its decoders, in one order."""
    channel = Channel.here()
    number = channel.number_decoder()
    if hasattr(parts := _drafting(recipe), "policy"):
        channel.know(parts.policy)
    return LeadingRecipe(recipe, channel, number) if channel.rank == 0 else _FollowingRecipe(recipe, channel, number)


def _drafting(recipe: Any) -> Any:
    """The part of a recipe that has a policy, if one does."""
    return recipe.one if isinstance(recipe, RowsRecipe) else recipe


class LeadingRecipe:
    """Makes engines that lead. All ranks make their first one when they make the decoder, the later ones when they are
    told to."""

    def __init__(self, recipe: Recipe[Any], channel: Channel, number: int) -> None:
        self._recipe, self._channel, self._number = recipe, channel, number
        self._is_first = True

    def turns(self, model: Any) -> list[Turn]:
        """See `Recipe`."""
        return self._recipe.turns(model)

    def build(self, model: Any) -> Any:
        """See `Recipe`."""
        if self._is_first:
            self._is_first = False
            engine = self._recipe.build(model)
        else:
            policy = getattr(_drafting(self._recipe), "policy", None)
            with leading(self._channel, Op.BUILD, self._number, policy=policy):
                engine = self._recipe.build(model)
        kind = LeadingRows if isinstance(self._recipe, RowsRecipe) else LeadingEngine
        return kind(engine, self._channel, self._number)


class _FollowingRecipe:
    """Makes engines that follow."""

    def __init__(self, recipe: Recipe[Any], channel: Channel, number: int) -> None:
        self.recipe, self.channel, self.number = recipe, channel, number

    def turns(self, model: Any) -> list[Turn]:
        """See `Recipe`."""
        return self.recipe.turns(model)

    def build(self, model: Any) -> Any:
        """See `Recipe`."""
        engine = self.recipe.build(model)
        agree(engine, lambda _: bool(self.channel.said().number))
        return engine


@dataclass(frozen=True)
class _Heard:
    """Processing by what rank 0 says; scores are of no interest here."""

    channel: Channel

    def choose(self, sampler: Sampler, logits: Tensor, text: Sequence[int]) -> tuple[int, Tensor]:
        """See `Processing`."""
        return self._tokens()[0], torch.zeros_like(logits, dtype=torch.float32)

    def walk(self, sampler: Sampler, nodes: Any, logits: Tensor, text: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """See `Processing`."""
        tokens = torch.tensor([self._tokens()], device=logits.device)
        return tokens, logits[0, :1].float(), torch.zeros_like(logits[0, :1], dtype=torch.float32)

    def _tokens(self) -> list[int]:
        tokens: list[int] | None = self.channel.said().payload
        if tokens is None:
            raise _RefusedError
        return tokens


class _RefusedError(Exception):
    """A processor of rank 0 has raised something."""


_followers: weakref.WeakValueDictionary[int, Follower] = weakref.WeakValueDictionary()  # of this process, by decoder


class Follower:
    """What a decoder is on the other ranks. It makes no rounds for anybody: `follow` repeats rank 0's.

    Args:
        kept: with an engine made by a recipe of `shared_recipe`.
    """

    def __init__(self, kept: Kept[Any]) -> None:
        self._kept, self._recipe = kept, kept.recipe
        self._chunks: dict[int, Iterator[int]] = {}
        _followers[self._recipe.number] = self  # type: ignore[attr-defined]

    def open(self, request: Request) -> Any:
        """See `RoundMaker`."""
        raise self.refusal()

    def undisturbed(self) -> AbstractContextManager[None]:
        """See `RoundMaker`."""
        raise self.refusal()

    def refusal(self) -> UsageError:
        """What is said to who asks this rank for a text."""
        rank = self._recipe.channel.rank  # type: ignore[attr-defined]
        return UsageError(
            f"rank {rank} of torchrun decodes nothing by itself: call decoder.follow() here, and ask rank 0 for texts"
        )

    def follow(self) -> None:
        """Repeat the calls that rank 0 makes, of all its decoders, until its program ends."""
        channel: Channel = self._recipe.channel  # type: ignore[attr-defined]
        with _deaf():
            while (message := channel.hear()).op is not Op.END:
                if message.op is Op.FAILED:
                    raise RanksError(f"a call has failed on rank 0 and not on rank {channel.rank}: see its error")
                if (follower := _followers.get(message.decoder)) is None:
                    raise RanksError(
                        f"rank {channel.rank} has no decoder {message.decoder} (from 0 on, in the order in which they "
                        "were made): make all decoders on every rank, and keep them"
                    )
                try:
                    follower.repeat(message)
                except RanksError:
                    raise
                except Exception as error:
                    channel.failed_together(error)
            channel.answer()

    def repeat(self, message: Message) -> None:
        """Make one call."""
        kept = self._kept
        with kept.turn, ambient(device := kept.model.device):
            kept.order.follow(device)
            self._repeat(message)

    def _repeat(self, message: Message) -> None:
        kept, op, channel = self._kept, message.op, self._recipe.channel  # type: ignore[attr-defined]
        recipe = _drafting(self._recipe.recipe)  # type: ignore[attr-defined]
        if op is Op.BUILD:
            if hasattr(recipe, "policy"):
                recipe.policy = channel.policy(message.number, message.payload)
            self._chunks.clear()
            kept.made = None  # its memory is free before the next one takes its own
            _ = kept.engine
        elif op is Op.POLICY:
            policy = channel.policy(message.number, message.payload)
            kept.engine.set_policy(policy)
            recipe.policy = policy
        elif op is Op.REFRESH:
            if not kept.engine.refresh():
                kept.made = None
        elif isinstance(self._recipe.recipe, RowsRecipe):  # type: ignore[attr-defined]
            self._rows(kept.engine, message, channel)
        else:
            self._one(kept.engine, message, channel)

    def _one(self, engine: Engine, message: Message, channel: Channel) -> None:
        if message.op is Op.LAUNCH:
            engine.launch_next()
            return
        item = engine.round() if message.op is Op.ROUND else engine.admit(_request(message.payload, channel))
        channel.see(item)

    def _rows(self, engine: BatchEngine, message: Message, channel: Channel) -> None:
        op, number = message.op, message.number
        if op is Op.LAUNCH:
            engine.launch_next()
        elif op is Op.RELEASE:
            self._chunks.pop(number, None)
            engine.release(number)
        elif op in (Op.ADMIT, Op.TAKE):
            if op is Op.ADMIT:
                told: ToldRequest = message.payload
                self._chunks[number] = engine.admit(number, _request(told, channel), hurry=told.hurry)
            if next(self._chunks[number], None) is None:
                del self._chunks[number]
        else:
            made: dict[Any, Round] = engine.entered() if op is Op.ENTERED else engine.round()
            for item in made.values():
                channel.see(item)


def _request(told: ToldRequest, channel: Channel) -> OwnRequest:
    return OwnRequest(told.input_ids, told.sampling, told.reuse_prefix, _Heard(channel) if told.is_processed else None)


@contextmanager
def _deaf() -> Iterator[None]:
    """Signals reach all ranks; what becomes of them rank 0 decides, and tells."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
