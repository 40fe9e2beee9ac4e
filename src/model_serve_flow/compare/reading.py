"""Reads single facts out of a comparison: the primary metric, the worst difference,
what must not ship.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model_serve_flow.compare.stats.paired import ALPHA
from model_serve_flow.flow.results.compared import (
    CandidateComparison,
    Comparison,
    Decision,
    Difference,
    SoftScore,
)
from model_serve_flow.flow.results.measured import BASE

AVERAGE = ("average", "of deciding tasks")

PRIMARY_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")


def within_margin(difference: Difference) -> bool:
    """Whether the verdict, or else the worse end of the interval, is inside the accepted drop."""
    if difference.adjusted_p is not None:
        return difference.adjusted_p[0] <= ALPHA
    if difference.higher_is_better:
        return difference.ci95[0] > -difference.limit
    return difference.ci95[1] < difference.limit


def main_differences(candidate: CandidateComparison) -> dict[tuple[str, str], Difference]:
    """(task, metric) -> difference: the average over the deciding tasks first,
    then each task's primary metric.
    """
    primaries = {
        (task, metric): metrics[metric]
        for task, metrics in candidate.accuracy.items()
        for metric in [primary_metric(metrics)]
    }
    return primaries if candidate.suite is None else {AVERAGE: candidate.suite, **primaries}


@dataclass(frozen=True)
class Offer:
    """One model as a buyer sees it: average score in points,
    cost in US dollars per million output tokens.
    """

    name: str
    score: float
    ci95: tuple[float, float]
    cost: float
    verdict: Decision | None
    dominated_by: str | None

    @property
    def on_front(self) -> bool:
        """Whether no other model is surely more accurate and cheaper,
        and it may be bought at all.
        """
        return self.verdict != "DO NOT SHIP" and self.dominated_by is None


def offers(comparison: Comparison) -> list[Offer]:
    """The base, then the candidates, as far as their score and cost are known;
    empty without a candidate among them.
    """
    found = [
        Offer(c.name, c.suite.candidate,
              (c.suite.base + c.suite.ci95[0], c.suite.base + c.suite.ci95[1]),
              c.cost_per_million_output_tokens, c.verdict, c.dominated_by)
        for c in comparison.candidates
        if c.suite is not None and c.cost_per_million_output_tokens is not None
    ]  # fmt: skip
    cost = comparison.base.cost_per_million_output_tokens
    if not found or cost is None:
        return found
    score = next(c.suite.base for c in comparison.candidates if c.suite is not None)
    return [Offer(BASE, score, (score, score), cost, None, comparison.base.dominated_by), *found]


def p_value(value: float | None) -> str:
    """A p-value with three decimals, '–' where there is none."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_statement(value: float) -> str:
    """A p-value in a sentence: 'p < 0.001', 'p = 0.020'."""
    shown = p_value(value)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def clusters(difference: Difference | SoftScore) -> str:
    """In which clusters the items come, with the design effect; empty where they come in none."""
    found = difference.clusters
    if found is None:
        return ""
    effect = "" if found.design_effect is None else f", design effect {found.design_effect:.1f}"
    return f" in {found.count} clusters by {found.key}{effect}"


def primary_metric(metrics: Iterable[str]) -> str:
    """The one metric of a task that counts in the verdict,
    of the names of those it has (at least one).

    word_perplexity for a text, else the first of `PRIMARY_METRICS` the task has (with any filter,
    in lm-eval's order), else the task's first metric.
    """
    names = list(metrics)
    for wanted in ("word_perplexity", *PRIMARY_METRICS):
        for metric in names:
            if metric.partition(",")[0] == wanted:
                return metric
    return names[0]


def worst(candidate: CandidateComparison) -> tuple[str, str, Difference] | None:
    """(task, metric, difference) of the task that comes nearest to its margin or lies farthest
    beyond it.

    Tasks that cannot decide do not count while there are others; none without accuracy.
    """
    rows = [(*row, d) for row, d in main_differences(candidate).items() if row != AVERAGE]
    telling = [row for row in rows if row[2].decides] or rows
    return max(telling, key=lambda row: _loss(row[2]) / row[2].limit, default=None)


def _loss(difference: Difference) -> float:
    """How much worse the candidate is, in the difference's unit."""
    return -difference.difference if difference.higher_is_better else difference.difference


def must_not_ship(candidate: CandidateComparison) -> bool:
    """Whether its gains are struck through."""
    return candidate.verdict == "DO NOT SHIP"


def all_differences(candidate: CandidateComparison) -> list[tuple[str, str, Difference]]:
    """(task, metric, difference) of the average and of every task and metric."""
    rows = [
        (task, name, d)
        for task, metrics in candidate.accuracy.items()
        for name, d in metrics.items()
    ]
    return rows if candidate.suite is None else [(*AVERAGE, candidate.suite), *rows]
