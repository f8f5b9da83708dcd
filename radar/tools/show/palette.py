"""The colours of a round, by the tokens that it gave.

One scale from pale to deep whose lightness alone tells the steps apart: it holds for colour-blind eyes and in grey
print. The ink of each scheme stands on every step with a contrast of 4.5 or more.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DARK", "LIGHT", "Scheme", "step", "variables"]


class Scheme(NamedTuple):
    """Colours by their use; `steps` are for rounds of 1, 2, ... tokens, the last also for more."""

    steps: tuple[str, ...]
    paper: str
    ink: str
    quiet: str
    line: str
    accent: str


LIGHT = Scheme(
    ("#ecedd9", "#ddead0", "#c1e4c6", "#a0ddc5", "#7ad5cc", "#55cbd9", "#3fbce7", "#57a9ea"),
    paper="#fcfcfa", ink="#16202a", quiet="#5b6670", line="#d9dcd8", accent="#b3470f",
)  # fmt: skip
DARK = Scheme(
    ("#20281e", "#233428", "#234036", "#214c47", "#1f585b", "#216371", "#2d6d89", "#4075a0"),
    paper="#0f1316", ink="#f4f8fa", quiet="#98a4ad", line="#2b333a", accent="#ffa46b",
)  # fmt: skip


def step(num_tokens: int) -> int:
    """Index of the colour of a round that gave so many tokens."""
    return min(num_tokens, len(LIGHT.steps)) - 1


def variables() -> str:
    """Both schemes as variables of CSS; paper in print is light."""

    def root(scheme: Scheme) -> str:
        steps = {f"step-{index}": colour for index, colour in enumerate(scheme.steps)}
        named = {name: value for name, value in scheme._asdict().items() if isinstance(value, str)}
        return ":root{" + ";".join(f"--{name}:{value}" for name, value in (steps | named).items()) + "}"

    return f"{root(LIGHT)}\n@media screen and (prefers-color-scheme:dark){{{root(DARK)}}}\n"
