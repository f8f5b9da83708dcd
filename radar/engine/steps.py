"""The steps of a round on static buffers: what the host calls one by one, and what a graph can capture."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.prefill import Prefill
from radar.engine.row_steps import RowSteps
from radar.engine.scored import Scored
from radar.engine.sized import Sized
from radar.errors import UsageError
from radar.policy.base import StopPolicy, bound_copy, nodes_of_policy
from radar.target.model import TargetModel
from radar_kernels import Share, accept_nodes, batch_stop, share_nodes

__all__ = ["RoundSteps"]


FEW = 3  # of so many texts one at least has to go on


class RoundSteps(RowSteps):
    """Draft, decide, verify, accept, commit (RADAR, arXiv 2512.14069). No step asks the host.

    A round is `begin`, then `step` until `stop` says so or `max_calls` are made, then `finish`, which is `select`,
    `verify`, `accept` and `commit`, of as many nodes as the tree has or the policy says (`sized`). Where drafting does
    not pay, `plain` is a round.

    Args:
        target, drafter, policy: on one device.
        config: the tree's shape.

    Attributes:
        policy: a bound copy; assign another one between two texts.
        nodes: the tree that `select` made.
        share: which of them all rows verify together; None: each row its own tree.
        max_calls: of a round, whatever the policy says.
        pairs: that a round's first draft call takes; a row may have more of them waiting, for which see `catch_up`.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig) -> None:
        super().__init__(target, drafter, config)
        self.max_calls, self.pairs = config.max_calls, config.max_accepted
        self._together: int | None = None
        self._carried: tuple[Prefill, int] | None = None
        self.share: Share | None = None
        self._sized: Sized[RoundSteps] | None = None
        self.policy = self.bind(policy)

    def bind(self, policy: StopPolicy) -> StopPolicy:
        """A copy that can decide here. Raises UsageError if it cannot."""
        nodes = nodes_of_policy(policy)
        if self._asks and max(nodes, default=0) > self.target.max_rows:
            raise UsageError(
                f"{policy!r} may verify {max(nodes)} nodes, and there is room for {self.target.max_rows}: make the "
                f"decoder with TreeConfig(total_tokens={min(max(nodes), 256)}), or take a policy for fewer"
            )
        return bound_copy(policy, self.signals, self.config)

    @property
    def _asks(self) -> bool:
        """Whether a policy may say how many nodes are verified: rows of a batch have pages for the tree's."""
        return self.target.cache.block_table is None and self.target.ranks is None

    @property
    def most_nodes(self) -> int:
        """That a round may verify of a row."""
        return max(self.config.total_tokens, *(nodes_of_policy(self.policy) if self._asks else ()), 0)

    @property
    def sized(self) -> Sized[RoundSteps] | None:
        """The ways to end a round with each number of nodes that the policy may choose. None, if it leaves them to the
        tree, or where it is not asked: in a batch, however few its texts are, and where ranks share a target."""
        nodes = nodes_of_policy(self.policy)
        if not nodes or not self._asks:
            return None
        if self._sized is None or self._sized.policy is not self.policy:
            self._sized = Sized(self.policy, self.drafter.tree, nodes, [self.verifying(n) for n in nodes])
        return self._sized

    def chosen(self) -> RoundSteps:
        """The steps that end this round: of as many nodes as the policy says, for which the host asks, or these."""
        return self if self.sized is None else self.sized.ways[int(self.sized.choice())]

    def verifying(self, nodes: int) -> RoundSteps:
        """The same steps, and the same target, sampler and cache, for trees of so many nodes."""
        way = copy.copy(self)
        way._sized, way.config = None, replace(self.config, total_tokens=nodes)
        way.drafter = self.drafter.first(1, nodes, self.drafter.tree.expanded)  # whose tree alone is read
        return way

    def first(
        self, count: int, total_tokens: int, expanded: int, *, together: int | None = None, max_calls: int | None = None
    ) -> RoundSteps:
        """The steps of the first rows of a batch on the same buffers, with trees of so many nodes; a draft call expands
        so many. A policy has to be bound there.

        Args:
            together: nodes of all rows that are verified, the best by probability; None: all of each row.
            max_calls: of a round; None: half of the nodes, where they are fewer than the config's: a tree of few has
                no deep levels.
        """
        view = self._of_first(count, total_tokens, expanded)
        view._sized, view._together = None, together
        if max_calls is not None:
            view.max_calls = min(self.max_calls, max_calls)
            view.pairs = view.max_calls + 1
        elif total_tokens < self.config.total_tokens:
            view.max_calls = min(self.max_calls, max(2, total_tokens // 2))
        view.config = replace(self.config, total_tokens=total_tokens)
        return view

    def carrying(self, prefill: Prefill, rows: int) -> RoundSteps:
        """The same steps, whose verification takes `rows` tokens of a prompt along. For rows that share one."""
        view = copy.copy(self)
        view._carried = prefill, rows
        return view

    def begin(self, pairs: int | None = None) -> None:
        """Draft call 1, which takes `pairs` [B, pairs] that wait, as many as `count` says of each row; None: those of
        the attribute."""
        pairs = self.pairs if pairs is None else pairs
        if hasattr(self.policy, "attach"):
            torch.add(self.target.cache.length, 1, out=self.signals.context_length)
        self.policy.reset()
        self._hold()
        if len(self.alive) > 1:
            self.alive.copy_(self.active)
        self.drafter.begin(self.tokens[:, :pairs].contiguous(), self.taps[:, :pairs].contiguous(), self.count)

    def draft(self) -> None:
        """All draft calls of a round, by the host, which asks for the flags after each."""
        self.begin(self.config.max_accepted)
        for _ in range(self.max_calls - 1):
            if bool(self.stop().all()):
                return
            self.step()
        if self.sized is not None:
            self.stop()  # the policy sees the last level too, before it chooses

    def stop(self) -> Tensor:
        """Which rows have ended their drafting, with the newest level or before: flags [B]. All have, once the few
        that have not would make a call that costs as much as one of all rows."""
        stop = self.policy.stop(self.drafter.tree.beam_scores)
        if len(stop) == 1:  # the loop ends with the one row
            return stop
        return batch_stop(stop, self.alive, self.active, few=FEW)

    def step(self) -> None:
        """One more draft call, for the rows that are alive; what the others have drafted stays as it is."""
        self.drafter.step(self.alive if len(self.alive) > 1 else None)

    def select(self) -> None:
        """Choose the best nodes of all levels, of each row or of all rows together. Where ranks share the target, those
        of rank 0: each drafts by itself, on cards that may round differently, and all verify one tree."""
        tree, counts = self.drafter.tree, None
        if self._together is not None:
            k, most = self.config.tree_top_k, min(self.config.total_tokens, tree.scores.shape[1] + 1)
            written = tree.scores[:, : k + (self.max_calls - 1) * k * k]
            self.share = share_nodes(written, self.active, total=self._together, most=most)
            counts = self.share.counts
        self.nodes = tree.select(self.root, counts)
        if (ranks := self.target.ranks) is not None:
            ranks.align([*self.nodes, tree.calls, *(self.share or ())])

    def verify(self) -> Tensor:
        """Run the target over the selected nodes: its token after each node [B, N]."""
        return self.choose(self.score())

    def choose(self, logits: Tensor) -> Tensor:
        """The target's token after each node [B, N], from what `score` returned."""
        nodes = self.nodes
        indices = self.target.cache.length[:, None] + nodes.depths + 1  # of the tokens to come, in the text
        of = None if self.share is None else self.share.nodes
        return self.sampler.sample(logits, indices, nodes.draft_tokens, nodes.ancestors, of)

    def score(self) -> Tensor:
        """Run the target over the selected nodes: its logits after each node [B, N, V], or of a share's T [T, 1, V]."""
        nodes = self.nodes
        if self.share is None:
            logits, self._node_taps = self.target.verify(nodes.draft_tokens, nodes.depths, nodes.ancestors)
        elif self._carried is None:
            logits, self._node_taps = self.target.verify_shared(nodes, self.share)
        else:
            prefill, rows = self._carried
            logits, taps = self.target.verify_shared(nodes, self.share, prefill.rider(rows))
            prefill.take(logits[-rows:], taps[-rows:])
            logits, self._node_taps = logits[:-rows], taps[:-rows]
        self._logits = logits.flatten(0, 1)
        return logits

    def accept(self, target_tokens: Tensor) -> None:
        """Walk the tree along the target's tokens, and leave them for the next round, the history and the host."""
        tree, calls = self.nodes, self.drafter.tree.calls
        seen = self.sampler.state.seen
        accept_nodes(tree.draft_tokens, tree.parents, tree.valid, target_tokens, calls, self._accepted, seen)

    def commit(self) -> Tensor:
        """Keep the rows and features of what was accepted.

        Returns:
            [B, 3 + A]: draft calls, draft tokens that were verified, accept_length, and the round's tokens, of which
            the first accept_length + 1 count.
        """
        path = at = self._accepted.path
        self.target.cache.commit(path, self.count)
        if self.share is None:
            torch.gather(self._node_taps, 1, path[..., None].expand_as(self.taps), out=self.taps)
            if len(path) > 1:
                at = path + self._rows * self.nodes.parents.shape[1]
        else:
            at = self.share.starts[:-1, None] + path
            torch.index_select(self._node_taps[:, 0], 0, at.flatten(), out=self.taps.view(at.numel(), -1))
        self.scored = Scored(self._logits, at, self.tokens)
        del self._logits
        return self.result

    def finish(self) -> Tensor:
        """All that follows the drafting; returns what `commit` does."""
        chosen = self.chosen()
        result = chosen.end()
        self.nodes, self.scored = chosen.nodes, chosen.scored
        return result

    def finish_each(self) -> None:
        """Every way in which a round can end, to warm up what will be captured."""
        for steps in [self] if self.sized is None else self.sized.ways:
            steps.end()

    def end(self) -> Tensor:
        """`finish` with these steps' own number of nodes."""
        self.select()
        self.accept(self.verify())
        result = self.commit()
        self.settle()
        return result
