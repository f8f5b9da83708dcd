"""A decoder's engine, as the model is: who needs it takes a turn, and it is made again for a model that has changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from radar.engine.ambient import StreamOrder, ambient
from radar.engine.base import BatchEngine, Engine
from radar.errors import BusyError
from radar.metrics import Tally
from radar.target.turn import Turn

__all__ = ["Kept", "Recipe"]


E = TypeVar("E", bound=Engine | BatchEngine)
E_co = TypeVar("E_co", bound=Engine | BatchEngine, covariant=True)


class Recipe(Protocol[E_co]):
    """What an engine is made of beside the model."""

    def turns(self, model: Any) -> list[Turn]:
        """What its rounds wait for."""

    def build(self, model: Any) -> E_co:
        """An engine for the model as it is now."""


class Kept(Generic[E]):
    """What all texts of a decoder share. Nothing here refers back to the decoder.

    Args:
        model: the transformers model that decodes.
        recipe: makes the engine for the model as it is: at first, and when its modules or storages are others.

    Attributes:
        model, recipe: as given.
        made: the engine; None: the next one to need it makes it.
        has_changed: the engine has been set otherwise, for texts to come.
        name: which runner makes the rounds, or made them last.
        turn: who makes rounds, or the engine, holds it.
        stepping: the thread that makes a round; None: none.
        order: puts the rounds behind what was done to the model on other CUDA streams.
        tally: the running total.
    """

    def __init__(self, model: Any, recipe: Recipe[E]) -> None:
        self.model, self.recipe = model, recipe
        self.made: E | None = None
        self.has_changed = False
        self.name = ""
        self.turn = threading.RLock()
        self.stepping: int | None = None
        self.order = StreamOrder()
        self.tally = Tally()

    @property
    def engine(self) -> E:
        """What makes the rounds; made again once the model was moved, cast or given other modules."""
        engine = self.made
        if engine is None:
            with self.taking_turn():  # a thread that reads figures must not make a second one beside it
                if self.made is None:
                    with ambient(self.model.device):
                        self.order.follow(self.model.device)
                        self.made = self.recipe.build(self.model)
                    self.name = self.made.name
                engine = self.made
        return engine

    def check(self) -> None:
        """Raise BusyError in a thread that is in the middle of a round of the decoder."""
        if self.stepping == threading.get_ident():
            raise BusyError(
                "this decoder is in the middle of a round, whose processor or criterion asks it for another text: use "
                "another decoder there, or ask when the round has ended"
            )

    def check_turns(self) -> None:
        """Raise BusyError in a thread whose forward of the model, or of the head, others wait for."""
        for turn in self.recipe.turns(self.model):
            turn.check()

    @contextmanager
    def taking_turn(self) -> Iterator[None]:
        """Have the engine for oneself."""
        self.check_turns()  # who has the decoder's turn may wait for what we hold
        with self.turn:
            yield
