"""The steps of a round on static buffers: what the host calls one by one, and what a graph can capture."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.prefill import Prefill
from radar.engine.sampler import Sampler
from radar.engine.saved_row import RowState
from radar.engine.scored import Scored
from radar.engine.sized import Sized
from radar.errors import UsageError
from radar.policy.base import RoundSignals, StopPolicy, bound_copy, nodes_of_policy
from radar.target.model import TargetModel
from radar_kernels import Acceptance, Share, accept_nodes, batch_stop, share_nodes

__all__ = ["RoundSteps"]


FEW = 3  # of so many texts one at least has to go on


class RoundSteps:
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
        scored: what the last pass chose by; None: there was none.
        max_calls: of a round, whatever the policy says.
        pairs: that a round's first draft call takes; a row may have more of them waiting, for which see `catch_up`.
        result: [B, 3 + A], see `commit`.
        active: [B] bool, the rows that hold a text; the others do nothing that counts.
        alive: [B] bool, the rows that still draft in this round.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig) -> None:
        batch, device = target.cache.length.shape[0], target.device
        self.target = target
        self.drafter = drafter
        self.config = config
        self.max_calls, self.pairs = config.max_calls, config.max_accepted
        self._together: int | None = None
        self._carried: tuple[Prefill, int] | None = None
        self.share: Share | None = None
        self.scored: Scored | None = None
        self.sampler = Sampler(batch, target.vocab_size, device)
        # what the last verification leaves for the next draft: its new tokens, their features, how many
        self.tokens = torch.zeros((batch, config.max_accepted), dtype=torch.int64, device=device)
        self.taps = torch.zeros((batch, config.max_accepted, drafter.feature_size), dtype=target.dtype, device=device)
        self.count = torch.ones(batch, dtype=torch.int64, device=device)
        self.root = torch.zeros(batch, dtype=torch.int64, device=device)
        self.result = torch.zeros((batch, 3 + config.max_accepted), dtype=torch.int64, device=device)
        self.active = torch.ones(batch, dtype=torch.bool, device=device)
        self.alive = self.active.clone()
        self._lengths = (target.cache.length, drafter.cache.length)
        self._held = torch.stack(self._lengths)  # when the round began
        self._one = torch.ones(batch, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch, device=device)[:, None]
        self._sized: Sized[RoundSteps] | None = None
        self.signals = RoundSignals(torch.full_like(self.root, -1), torch.zeros_like(self.root))
        path, signals = torch.zeros_like(self.tokens), self.signals
        self._accepted = Acceptance(path, self.tokens, signals.accept_length, self.count, self.root, self.result)
        self.policy = self.bind(policy)

    def bind(self, policy: StopPolicy) -> StopPolicy:
        """A copy that can decide here. Raises UsageError if it cannot."""
        if (most := max(nodes_of_policy(policy), default=0)) > self.target.max_rows:
            raise UsageError(
                f"{policy!r} may verify {most} nodes, and there is room for {self.target.max_rows}: make the decoder "
                f"with TreeConfig(total_tokens={most}), or take a policy for fewer"
            )
        return bound_copy(policy, self.signals, self.config)

    @property
    def most_nodes(self) -> int:
        """That a round may verify of a row."""
        return max(self.config.total_tokens, *nodes_of_policy(self.policy), 0)

    @property
    def sized(self) -> Sized[RoundSteps] | None:
        """The ways to end a round with each number of nodes that the policy may choose. None, if it leaves them to the
        tree, or where several rows or ranks share a verification: there it is not asked."""
        nodes = nodes_of_policy(self.policy)
        if not nodes or len(self.active) > 1 or self.target.ranks is not None:
            return None
        if self._sized is None or self._sized.policy is not self.policy:
            ways = [self.first(1, n, self.drafter.tree.expanded, max_calls=self.max_calls) for n in nodes]
            self._sized = Sized(self.policy, self.drafter.tree, nodes, ways)
        return self._sized

    def chosen(self) -> RoundSteps:
        """The steps that end this round: of as many nodes as the policy says, for which the host asks, or these."""
        return self if self.sized is None else self.sized.ways[int(self.sized.choice())]

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
        view = copy.copy(self)
        view._sized = None
        view._together = together
        if max_calls is not None:
            view.max_calls = min(self.max_calls, max_calls)
            view.pairs = view.max_calls + 1
        elif total_tokens < self.config.total_tokens:
            view.max_calls = min(self.max_calls, max(2, total_tokens // 2))
        view.config = replace(self.config, total_tokens=total_tokens)
        view.target, view.drafter = self.target.first(count), self.drafter.first(count, total_tokens, expanded)
        view.sampler = self.sampler.first(count)
        for name in ("tokens", "taps", "count", "root", "result", "active", "alive", "_one", "_rows"):
            setattr(view, name, getattr(self, name)[:count])
        view._lengths = (view.target.cache.length, view.drafter.cache.length)
        view._held = torch.stack(view._lengths)
        view.signals = RoundSignals(*(tensor[:count] for tensor in self.signals))
        view._accepted = Acceptance(*(tensor[:count] for tensor in self._accepted))
        return view

    def carrying(self, prefill: Prefill, rows: int) -> RoundSteps:
        """The same steps, whose verification takes `rows` tokens of a prompt along. For rows that share one."""
        view = copy.copy(self)
        view._carried = prefill, rows
        return view

    @property
    def state(self) -> RowState:
        """Of the texts in a batch's rows."""
        tensors = (self.tokens, self.taps, self.count, self.root, self.active, self.signals.accept_length)
        return RowState(tensors, self.sampler, (self.target.cache, self.drafter.cache))

    def load(self, token: Tensor, taps: Tensor, row: int | None = None) -> None:
        """Take the prompt's successor [B, 1], and the taps of the prompt's last position [B, 1, taps]; of one row alone
        with B = 1."""
        rows = slice(None) if row is None else slice(row, row + 1)
        self.count[rows] = 1
        self.root[rows] = token[:, 0]
        self.tokens[rows, :1] = token
        self.taps[rows, :1] = taps
        self.signals.accept_length[rows] = -1

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

    def plain(self) -> Tensor:
        """A round without drafts: one token of the target, whose pair waits in `tokens` and `taps` for the next draft.

        As many pairs as a tree can accept nodes can wait; before one more, `catch_up`.

        Returns:
            The token [B, 1], which is `root` too.
        """
        self._hold()
        logits, taps = self.target.verify(*self.target.chain(self.root[:, None]))
        self.target.advance(1)
        token = self.sampler.sample(logits, self.target.cache.length[:, None])
        self.sampler.commit(token, self._one)
        place = self.count[:, None]
        self.tokens.scatter_(1, place, token)
        self.taps.scatter_(1, place[..., None].expand_as(taps), taps)
        self.count += 1
        self.root.copy_(token[:, 0])
        self.settle()
        self.scored = Scored(logits[:, 0], self._rows, token)
        return token

    def catch_up(self) -> None:
        """Add the waiting pairs to the draft's cache. A `plain` step has to follow before the next `begin`."""
        self._hold()
        self.drafter.extend(self.tokens, self.taps, self.count)
        self.count.zero_()
        self.settle()

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

    def _hold(self) -> None:
        """Remember how long the rows are, for `settle`."""
        if len(self.active) > 1:
            torch.stack(self._lengths, out=self._held)

    def settle(self) -> None:
        """Rows without a text, and one with a prompt that is half taken in, stay as they were."""
        if len(self.active) > 1:
            for length, held in zip(self._lengths, self._held, strict=True):
                length.copy_(torch.where(self.active, length, held))
            self.count.copy_(torch.where(self.active, self.count, self._one))
