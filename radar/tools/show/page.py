"""One page of HTML that shows a generation: its text by rounds, and the tree of every round."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from radar.policy.base import Threshold
from radar.tools.show import palette
from radar.tools.show.pieces import Piece, pieces, token_text
from radar.tools.show.trace import Node, Trace, TracedRound

__all__ = ["page", "page_data"]

_SCRIPTS = "dom.js", "text.js", "tree.js", "round.js", "page.js"


def page(trace: Trace, tokenizer: Any, *, about: Mapping[str, str]) -> str:
    """The page, whole in itself: it loads nothing and runs no script but its own.

    Args:
        trace: the generation.
        tokenizer: of its decoder.
        about: what the page says about models and settings, in order: names and values.
    """
    folder = files("radar.tools.show") / "page"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    data = json.dumps(page_data(trace, tokenizer, about=about), ensure_ascii=False, separators=(",", ":"))
    script = "".join(read(name) for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "HASH": digest,
        "STYLE": palette.variables() + read("page.css"),
        "SCRIPT": script,
        "DATA": data.replace("<", "\\u003c"),  # so nothing in it ends the element, or opens a comment in it
    }
    head, *rest = read("page.html").split("{{")
    return head + "".join(parts[name] + text for name, text in (part.split("}}", 1) for part in rest))


def page_data(trace: Trace, tokenizer: Any, *, about: Mapping[str, str]) -> dict[str, Any]:
    """What the page draws, ready for JSON. Scores are natural logarithms, times milliseconds."""
    m = trace.metrics
    texts = iter(pieces(tokenizer, trace.token_ids))
    used = {node.token for item in trace.rounds for node in item.nodes}
    used |= {item.target_token for item in trace.rounds}
    return {
        "about": dict(about),
        "figures": {
            "tokens": m.num_tokens,
            "rounds": m.num_spec_steps,
            "tokens_per_round": round(m.mean_acceptance_length, 3),
            "draft_calls_per_round": round(m.draft_calls_per_round, 3),
            "tokens_per_second": round(m.tokens_per_second, 2),
        },
        "policy": {
            "name": repr(trace.policy),
            "mass": trace.policy.mass if isinstance(trace.policy, Threshold) else None,
        },
        "finish_reason": trace.finish_reason,
        "prompt": _segments(pieces(tokenizer, trace.prompt_ids)),
        "num_prompt_tokens": len(trace.prompt_ids),
        "names": {token: token_text(tokenizer, token) for token in sorted(used)},
        "rounds": [_round(item, [next(texts) for _ in item.round.tokens]) for item in trace.rounds],
    }


def _segments(text: Sequence[Piece]) -> list[list[Any]]:
    """The same text in fewer pieces: those that are not special are joined."""
    joined: list[list[Any]] = []
    for piece in text:
        if joined and not piece.is_special and not joined[-1][1]:
            joined[-1][0] += piece.text
        else:
            joined.append([piece.text, int(piece.is_special)])
    return joined


def _round(item: TracedRound, texts: Sequence[Piece]) -> dict[str, Any]:
    done = item.round
    kind = "prompt" if done.is_prefill else "draft" if done.num_draft_calls else "plain"
    return {
        "kind": kind,
        "tokens": [[piece.text, int(piece.is_special)] for piece in texts],
        "root": item.root,
        "target": item.target_token,
        "accepted": done.accept_length,
        "verified": sum(node.verified for node in item.nodes),
        "calls": [
            {
                "candidates": call.num_candidates,
                "mass": round(call.mass, 4),
                "go_on": None if call.go_on is None else round(call.go_on, 4),
                "asked": call.asked,
            }
            for call in item.calls
        ],
        "nodes": {
            "token": [node.token for node in item.nodes],
            "parent": [node.parent for node in item.nodes],
            "score": [round(node.score, 3) for node in item.nodes],
            "state": [_state(node) for node in item.nodes],
        },
        "milliseconds": {part: round(seconds * 1e3, 2) for part, seconds in done.seconds.items()},
    }


def _state(node: Node) -> int:
    """0: drafted, 1: verified, 2: accepted."""
    return 2 if node.accepted else int(node.verified)
