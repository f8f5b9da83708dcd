"""A batch of rows that draft, each as deep as its own verdicts say."""

from __future__ import annotations

from collections.abc import Sequence

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.budget import calls_of, carried_of, expanded_of, nodes_of
from radar.engine.captured import Streams
from radar.engine.conditional import why_no_while_nodes
from radar.engine.fallback import Fallback
from radar.engine.rehearsal import rehearse
from radar.engine.rounds import RoundGraphs, Rounds
from radar.engine.rows import RowsEngine
from radar.engine.steps import RoundSteps
from radar.engine.width import widths
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel

__all__ = ["RoundRows"]


class RoundRows(RowsEngine):
    """Rounds for the texts in the rows of a batch.

    Args:
        target, drafter: of one row more than texts, on one device.
        policy: decides for each row.
        config: shape of the trees. Several rows verify the best nodes of all (`nodes_of`); without graphs each row has
            as many, since attention on a CPU reads a whole cache for each row that it is given.
        graphs: rounds are CUDA graphs.
        fallback: take plain steps where drafting does not pay.
    """

    steps: RoundSteps
    drafter: Drafter

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter,
        policy: StopPolicy,
        config: TreeConfig,
        *,
        graphs: bool = False,
        fallback: bool = False,
    ) -> None:
        steps = RoundSteps(target, drafter, policy, config)
        super().__init__(steps, drafter, graphs=graphs, ahead=config.max_accepted, nodes=config.total_tokens)
        self.policy = self._bound = policy
        self.config = config
        views = []
        for rows in widths(len(steps.active) - 1):
            together, expanded = nodes_of(config.total_tokens, rows), expanded_of(config.tree_top_k, rows)
            if rows > 1 and graphs:
                calls = calls_of(rows)
                views.append(steps.first(rows, config.total_tokens, expanded, together=together, max_calls=calls))
            else:
                views.append(steps.first(rows, together // rows, expanded))
        rules = [Fallback() if fallback else None for _ in views]
        if not graphs:
            self._rounds = [Rounds(view, policy, rule) for view, rule in zip(views, rules, strict=True)]
        else:
            for view in views:
                view.policy = view.bind(policy)
            rehearse(lambda: self._rehearse(views, fallback), target.device)
            for view in views:
                view.scored = None  # logits of nobody
            streams, conditional = Streams(target.device), why_no_while_nodes(target.device) is None
            self.capture_prompts(streams)
            self._rounds = [
                RoundGraphs(view, policy, rule, streams, conditional=conditional, prefill=self._prefill)
                for view, rule in zip(views, rules, strict=True)
            ]
        self.widths = list(self._rounds)
        self.forget()

    def set_policy(self, policy: StopPolicy) -> None:
        """Decide by another policy once the rows are empty. Raises UsageError if it cannot serve the tree."""
        for rounds in self._rounds:
            rounds.steps.bind(policy)
        self.policy = policy

    def prepare(self) -> None:
        """See `RowsEngine`."""
        if self._bound is not self.policy:
            self._prefill.forget()  # the last prompt, which may have more tokens than a round takes along
            for rounds in self._rounds:
                rounds.decide_by(self.policy)
            self._bound = self.policy
            self.forget()
        for rounds in self._rounds:
            if rounds.fallback is not None:
                rounds.fallback.begin_text()

    def forget(self) -> None:
        """See `RowsEngine`."""
        super().forget()
        self.steps.count.fill_(1)

    def _rehearse(self, views: Sequence[RoundSteps], fallback: bool) -> None:
        self.rehearse_prompts()
        for view in views:
            view.begin()
            view.stop()
            view.step()
            view.finish_each()
            if carried := min(carried_of(len(view.active)), max(self._prefill.sizes)):
                view.carrying(self._prefill, carried).finish()
            if fallback or view.pairs < view.config.max_accepted:
                view.plain()
                view.catch_up()
                view.count.fill_(1)
        self.forget()
