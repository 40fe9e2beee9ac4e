"""The decision by non-inferiority, Holm-corrected over the tasks, with its reasons in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass

from model_serve_flow import statistics
from model_serve_flow.compare.intervals import simultaneous
from model_serve_flow.compare.repeats import advice
from model_serve_flow.compare.tiers import EVERY_TASK_DECIDES, Tiers
from model_serve_flow.compare.tiers import withheld as blocked_by
from model_serve_flow.differences import Differences, asked, deciding, oriented
from model_serve_flow.formatting import clusters, p_statement
from model_serve_flow.pairs import primary_metric
from model_serve_flow.results import Decision, Difference

TEXT_METRIC = "word_perplexity"  # bits per byte is the same test in another unit


@dataclass(frozen=True)
class _Check:
    """One question of the verdict: is the loss surely within its margin, surely beyond it, or neither?"""

    subject: str
    difference: Difference
    within_p: float  # adjusted, of "the loss is the margin or more"
    beyond_p: float  # adjusted, of "the loss is less than the margin"
    tests: int  # over which the p-values are adjusted

    @property
    def passes(self) -> bool:
        return self.within_p <= statistics.ALPHA

    @property
    def fails(self) -> bool:
        return self.beyond_p <= statistics.ALPHA

    @property
    def unsure(self) -> bool:
        return not self.passes and not self.fails

    def sentence(self) -> str:
        """What was found, in numbers and units."""
        if self.difference.too_few is not None:
            return self._too_few()
        d = self.difference
        unit = "%" if d.unit == "percent" else d.unit
        change = f"{'drop' if d.higher_is_better else 'rise'} of {d.limit:.1f} {unit}"
        if d.limit < d.margin:
            change += f", {100 * (1 - d.retention):.0f} % of what the base scores above guessing,"
        place = "within" if self.passes else "beyond" if self.fails else "not clearly within"
        answers = "" if d.mcnemar_p is None else f", McNemar {p_statement(d.mcnemar_p)}"
        adjusted = "Holm-adjusted " if self.tests > 1 else ""
        found = (
            f"{self.subject} changed by {d.difference:+.1f} {unit} ({self._interval()}, "
            f"n = {d.n}{clusters(d)}{answers}): {place} the accepted {change} "
            f"({adjusted}{p_statement(self.beyond_p if self.fails else self.within_p)})."
        )
        return " ".join(filter(None, (found, self._needed() if self.unsure else "", _tail_sentence(d))))

    def items_to_settle(self) -> int | None:
        """Items at which this question would be decided; None if it is, or if no number can be told."""
        d = self.difference
        if not self.unsure or d.too_few is not None:
            return d.too_few
        if d.flips is None or (d.clusters is not None and d.clusters.decide):
            return statistics.items_to_settle(d.n, oriented(d), d.limit, self.tests)
        flips = (d.flips.wrong_to_right, d.flips.right_to_wrong)
        return statistics.binary_items_to_settle(*flips, d.n, d.limit / 100, self.tests)

    def _interval(self) -> str:
        low, high = self.difference.shown_ci95
        kind = "simultaneous 95 %" if self.tests > 1 else "95 %"
        return f"{kind} interval {low:+.1f} to {high:+.1f}"

    @property
    def _noun(self) -> str:
        return "items" if self.difference.unit == "points" else "documents"

    def _needed(self) -> str:
        if self.difference.repeated is not None:
            return advice(self.difference, self.tests)
        items = self.items_to_settle()
        if items is None:
            return f"It is too close to the margin to tell how many {self._noun} would settle it."
        return f"About {items:,} {self._noun} would settle it."

    def _too_few(self) -> str:
        d = self.difference
        return f"{self.subject} is not decided: too few {self._noun} (n = {d.n}; at least {d.too_few} are needed)."


def _tail_sentence(difference: Difference) -> str:
    """What the mean over the documents of a text does not tell; nothing where it is no text."""
    tail = difference.tail
    if tail is None:
        return ""
    most = f"with 95 % confidence at most {100 * tail.share_at_most:.1f} % of such documents do"
    if tail.collapsed == 0:
        return f"None of the {difference.n} documents doubled its perplexity: {most}."
    return f"{tail.collapsed} of the {difference.n} documents at least doubled their perplexity: {most}."


def decide(
    differences: Differences, suite: Difference | None, tiers: Tiers = EVERY_TASK_DECIDES
) -> tuple[Decision, tuple[str, ...]]:
    """The verdict by non-inferiority, and its reasons, the deciding one first.

    SHIP: the macro average, every deciding task and every perplexity surely lose less than their margins.
    DO NOT SHIP: one of them surely loses more than its margin.
    INCONCLUSIVE: neither, or no task can decide, or one has too few items for its test, or one that cannot decide shows
    a loss all the same, or a required task is missing or cannot decide.

    "Surely" is a one-sided p-value of at most 0.025, Holm-adjusted over the tasks and perplexities.
    """
    measured, differences = differences, tiers.counting(differences)
    family = _task_checks(differences)
    checks = [*([_suite_check(differences, suite)] if suite else []), *family.values()]
    blocked = tiers.blockers(measured, {task for task, _ in family})
    failing, unsure = any(check.fails for check in checks), any(check.unsure for check in checks)
    silent, withheld = _silent_sentences(differences)
    open_ = unsure or suite is None or withheld
    verdict = blocked_by("DO NOT SHIP" if failing else "INCONCLUSIVE" if open_ else "SHIP", blocked)
    ordered = sorted(checks, key=lambda check: (not check.fails, check.passes))
    reasons = [check.sentence() for check in ordered]
    if suite is None:
        reasons.insert(len(reasons) if failing else 0, "No task can decide, so none speaks for the candidate.")
    first = [*blocked, *withheld] if not (failing or unsure) else []
    rest = [sentence for sentence in (*blocked, *withheld, *silent) if sentence not in first]
    return verdict, (*first, *reasons, *rest)


def with_items_to_settle(
    differences: Differences, suite: Difference | None, tiers: Tiers = EVERY_TASK_DECIDES
) -> tuple[dict[str, dict[str, Difference]], Difference | None]:
    """The differences with adjusted p-values, simultaneous intervals, and the items at which each would be decided.

    Those that count in the verdict are taken at its corrected level, the others by themselves.
    """
    counting = _task_checks(tiers.counting(differences))

    def filled(task: str, metric: str, difference: Difference) -> Difference:
        check = counting.get((task, metric))
        if check is None:
            return difference.model_copy(update={"items_to_settle": _check(task, difference).items_to_settle()})
        return difference.model_copy(
            update={
                "items_to_settle": check.items_to_settle(),
                "adjusted_p": (check.within_p, check.beyond_p),
                "simultaneous_ci95": check.difference.simultaneous_ci95,
            }
        )

    found = {
        task: {name: filled(task, name, d) for name, d in metrics.items()} for task, metrics in differences.items()
    }
    if suite is None:
        return found, None
    return found, suite.model_copy(update={"items_to_settle": _check("", suite).items_to_settle()})


def _check(subject: str, difference: Difference) -> _Check:
    """The question by itself, uncorrected."""
    return _Check(subject, difference, *_p_values(difference), 1)


def _p_values(difference: Difference) -> tuple[float, float]:
    """Of "the loss is the margin or more" and of "it is less"; both 1 where too few items allow no test."""
    p = difference.decision_p
    return (1.0, 1.0) if p is None else (p, 1 - p)


def _suite_check(differences: Differences, suite: Difference) -> _Check:
    count = len(deciding(differences))
    return _check(f"The average score over {'1 task' if count == 1 else f'{count} tasks'}", suite)


def _task_checks(differences: Differences) -> dict[tuple[str, str], _Check]:
    """The family of the correction: the primary metric of every deciding task, and every perplexity."""
    primaries = {task: primary_metric(metrics) for task, metrics in differences.items()}
    family = {(task, primaries[task]): (task, d) for task, d in asked(differences).items()}
    for task, metric in primaries.items():
        if differences[task][metric].unit == "percent":
            name = "Word perplexity" if metric == TEXT_METRIC else "Perplexity"
            family[task, metric] = (f"{name} on {task}", differences[task][metric])
    within, beyond = (statistics.holm([_p_values(d)[side] for _, d in family.values()]) for side in (0, 1))
    intervals = simultaneous([d for _, d in family.values()])
    return {
        key: _Check(subject, d.model_copy(update={"simultaneous_ci95": shown}), *adjusted, len(family))
        for (key, (subject, d)), shown, *adjusted in zip(family.items(), intervals, within, beyond, strict=True)
    }


def _silent_sentences(differences: Differences) -> tuple[list[str], list[str]]:
    """Why tasks cannot decide; and of those that show a loss all the same, for which SHIP is withheld."""
    silent, withheld = [], []
    for task, metrics in differences.items():
        d = metrics[primary_metric(metrics)]
        if d.near_chance:
            silent.append(
                f"{task} cannot decide: the base's {d.base:.1f} points are not clearly above guessing "
                f"({d.chance:.1f} points, n = {d.n})."
            )
        elif d.too_weak:
            reason = (
                f"{task} cannot decide: the base scores {d.base:.1f} points (lower bound {d.base_low:.1f}, n = {d.n}), "
                f"too close to guessing ({d.chance or 0:.1f} points) to lose the accepted {d.margin:.1f}."
            )
            lost = 1 - d.retention_p <= statistics.ALPHA
            (withheld if lost else silent).append(f"{reason} {_loss_sentence(d)}" if lost else reason)
    return silent, withheld


def _loss_sentence(difference: Difference) -> str:
    kept, p = 100 * difference.retention, p_statement(1 - difference.retention_p)
    return (
        f"But the candidate scores {difference.candidate:.1f} there, clearly less than {kept:.0f} % of the base's "
        f"score above guessing ({p}): SHIP is withheld."
    )
