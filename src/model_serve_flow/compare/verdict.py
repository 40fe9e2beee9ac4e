"""Decides by non-inferiority, Holm-corrected over the tasks, with reasons in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model_serve_flow.compare.differences import Differences, asked, deciding
from model_serve_flow.compare.intervals import Key, one_look_interval, simultaneous
from model_serve_flow.compare.reading import clusters, p_statement, primary_metric
from model_serve_flow.compare.repeats import advice
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.tiers import EVERY_TASK_DECIDES, Tiers
from model_serve_flow.compare.tiers import withheld as blocked_by
from model_serve_flow.flow.results.compared import Decision, Difference

SUITE: Key = ("", "")
TEXT_METRIC = "word_perplexity"  # bits per byte would repeat this test in another unit


@dataclass(frozen=True)
class _Check:
    """One question of the verdict: how the loss compares with its margin.

    The loss is surely within the margin (`passes`), surely beyond it (`fails`), or neither
    (`unsure`).
    """

    subject: str
    difference: Difference
    within_p: float  # adjusted p-value of "the loss is the margin or more"
    beyond_p: float  # adjusted p-value of "the loss is less than the margin"
    tests: int  # number of tests over which within_p is adjusted
    key: Key = SUITE

    @property
    def passes(self) -> bool:
        return self.within_p <= paired.ALPHA

    @property
    def fails(self) -> bool:
        return self.beyond_p <= paired.ALPHA

    @property
    def unsure(self) -> bool:
        return not self.passes and not self.fails

    def sentence(self) -> str:
        """Says what was found, in numbers and units."""
        if self.difference.too_few is not None:
            return self._too_few()
        d = self.difference
        unit = "%" if d.unit == "percent" else d.unit
        change = f"{'drop' if d.higher_is_better else 'rise'} of {d.limit:.1f} {unit}"
        if d.limit < d.margin:
            assert d.retention is not None
            change += f", {100 * (1 - d.retention):.0f} % of what the base scores above guessing,"
        place = "within" if self.passes else "beyond" if self.fails else "not clearly within"
        answers = "" if d.mcnemar_p is None else f", McNemar {p_statement(d.mcnemar_p)}"
        adjusted = "Holm-adjusted " if self.tests > 1 else ""
        found = (
            f"{self.subject} changed by {d.difference:+.1f} {unit} ({self._interval()}, "
            f"n = {d.n}{clusters(d)}{answers}): {place} the accepted {change} "
            f"({adjusted}{p_statement(self.beyond_p if self.fails else self.within_p)})."
        )
        return " ".join(
            filter(None, (found, self._needed() if self.unsure else "", _tail_sentence(d)))
        )

    def items_to_settle(self) -> int | None:
        """Computes how many items would decide this question.

        Returns:
            None if the question is decided, or if no number can be given. With too few items for a
            test: the least number of items for the test.
        """
        d = self.difference
        if not self.unsure or d.too_few is not None:
            return d.too_few
        if d.flips is None or (d.clusters is not None and d.clusters.decide):
            return paired.items_to_settle(d.n, one_look_interval(d), d.limit, self.tests)
        flips = (d.flips.wrong_to_right, d.flips.right_to_wrong)
        return paired.binary_items_to_settle(*flips, d.n, d.limit / 100, self.tests)

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
        return (
            f"{self.subject} is not decided: too few {self._noun} (n = {d.n}; at least {d.too_few} "
            "are needed)."
        )


def _tail_sentence(difference: Difference) -> str:
    """Says how many documents of a text doubled their perplexity, which the mean does not show.

    The sentence is empty for a task that is no text.
    """
    tail = difference.tail
    if tail is None:
        return ""
    most = f"with 95 % confidence at most {100 * tail.share_at_most:.1f} % of such documents do"
    if tail.collapsed == 0:
        return f"None of the {difference.n} documents doubled its perplexity: {most}."
    return (
        f"{tail.collapsed} of the {difference.n} documents at least doubled their perplexity: "
        f"{most}."
    )


class Judgement(NamedTuple):
    """The verdict on a candidate.

    Attributes:
        verdict: SHIP, DO NOT SHIP or INCONCLUSIVE.
        reasons: plain sentences, the deciding reason first.
        blocked: the sentences among them on required tasks that withhold SHIP.
    """

    verdict: Decision
    reasons: tuple[str, ...]
    blocked: tuple[str, ...] = ()


def decide(
    differences: Differences,
    suite: Difference | None,
    tiers: Tiers = EVERY_TASK_DECIDES,
    others: Sequence[float] = (),
) -> Judgement:
    """Decides by non-inferiority.

    SHIP: the macro average, every deciding task and every perplexity surely lose less than their
    margins.

    DO NOT SHIP: one of them surely loses more than its margin.

    INCONCLUSIVE: any other case. For example no task can decide, a task has too few items for its
    test, a task that cannot decide shows a loss all the same, or a required task is missing or
    cannot decide.

    "Surely" is a one-sided p-value of at most 0.025, Holm-adjusted over the tasks and perplexities.
    If there are other candidates, "surely less" is adjusted over all questions of all candidates,
    the averages included. Without this correction, with 20 candidates whose loss equals the margin,
    at least one of them would ship by chance in 39 % of all cases.

    Args:
        differences, suite: of this candidate.
        tiers: the tier of every task.
        others: the `loss_p_values` of all other candidates.
    """
    measured, differences = differences, tiers.counting(differences)
    checks = _checks(differences, suite, others)
    blocked = tiers.blockers(measured, {check.key[0] for check in checks})
    failing, unsure = any(check.fails for check in checks), any(check.unsure for check in checks)
    silent, withheld = _silent_sentences(differences)
    open_ = unsure or suite is None or withheld
    verdict = blocked_by("DO NOT SHIP" if failing else "INCONCLUSIVE" if open_ else "SHIP", blocked)
    ordered = sorted(checks, key=lambda check: (not check.fails, check.passes))
    reasons = [check.sentence() for check in ordered]
    if suite is None:
        reasons.insert(
            len(reasons) if failing else 0, "No task can decide, so none speaks for the candidate."
        )
    first = [*blocked, *withheld] if not (failing or unsure) else []
    rest = [sentence for sentence in (*blocked, *withheld, *silent) if sentence not in first]
    return Judgement(verdict, (*first, *reasons, *rest), tuple(blocked))


def loss_p_values(differences: Differences, suite: Difference | None) -> list[float]:
    """Lists the uncorrected p-values of one candidate that must be small for SHIP.

    There is one p-value for every task, every perplexity and the average.
    """
    asked_for = [difference for _, difference in _family(differences).values()]
    return [difference.decision_ps[0] for difference in (*asked_for, *filter(None, [suite]))]


def with_items_to_settle(
    differences: Differences,
    suite: Difference | None,
    tiers: Tiers = EVERY_TASK_DECIDES,
    others: Sequence[float] = (),
) -> tuple[dict[str, dict[str, Difference]], Difference | None]:
    """Adds adjusted p-values, simultaneous intervals and `items_to_settle` to the differences.

    Differences that count in the verdict are judged at its corrected level, all others uncorrected.

    Args:
        differences, suite, tiers, others: as in `decide`.
    """
    counting = {check.key: check for check in _checks(tiers.counting(differences), suite, others)}

    def filled(task: str, metric: str, difference: Difference) -> Difference:
        check = counting.get((task, metric))
        if check is None:
            return difference.model_copy(
                update={"items_to_settle": _check(task, difference).items_to_settle()}
            )
        return difference.model_copy(
            update={
                "items_to_settle": check.items_to_settle(),
                "adjusted_p": (check.within_p, check.beyond_p),
                "simultaneous_ci95": check.difference.simultaneous_ci95,
            }
        )

    found = {
        task: {name: filled(task, name, d) for name, d in metrics.items()}
        for task, metrics in differences.items()
    }
    if suite is None:
        return found, None
    check = counting[SUITE]
    shown = {
        "adjusted_p": (check.within_p, check.beyond_p),
        "simultaneous_ci95": check.difference.simultaneous_ci95,
    }
    tells_more = bool(others) or suite.look_p is not None
    return found, suite.model_copy(
        update={"items_to_settle": check.items_to_settle(), **(shown if tells_more else {})}
    )


def _check(subject: str, difference: Difference) -> _Check:
    """Builds the question of one difference by itself, uncorrected."""
    return _Check(subject, difference, *difference.decision_ps, 1)


def _suite_subject(differences: Differences) -> str:
    count = len(deciding(differences))
    return f"The average score over {'1 task' if count == 1 else f'{count} tasks'}"


def _checks(
    differences: Differences, suite: Difference | None, others: Sequence[float]
) -> list[_Check]:
    """Builds the questions of one candidate.

    The average comes first, then the primary metric of every task, then every perplexity. With one
    candidate, the tasks and perplexities are the family of the correction, and the average has its
    own level. With several candidates, the family of "surely less" is every question of every
    candidate.
    """
    family = _family(differences)
    if suite is not None:
        family = {SUITE: (_suite_subject(differences), suite), **family}
    joint = [key for key in family if key != SUITE or others]
    alone = [key for key in family if key != SUITE]
    shown = simultaneous({key: family[key][1] for key in joint}, alone, others)
    # The average's own interval knows one look only, so looks need another interval.
    if SUITE not in joint and suite is not None and suite.look_p is not None:
        shown |= simultaneous({SUITE: suite}, [SUITE])
    raw = {key: difference.decision_ps for key, (_, difference) in family.items()}
    within = {key: p[0] for key, p in raw.items()} | _holm(
        {key: raw[key][0] for key in joint}, others
    )
    beyond = {key: p[1] for key, p in raw.items()} | _holm({key: raw[key][1] for key in alone})
    tests = {key: len(joint) + len(others) if key in joint else 1 for key in family}
    return [
        _Check(
            subject,
            d.model_copy(update={"simultaneous_ci95": shown.get(key)}),
            within[key],
            beyond[key],
            tests[key],
            key,
        )
        for key, (subject, d) in family.items()
    ]


def _holm(p_values: dict[Key, float], others: Sequence[float] = ()) -> dict[Key, float]:
    """Returns Holm's adjusted p-values.

    Args:
        others: more p-values of the family, whose adjusted values are not returned.
    """
    adjusted = paired.holm([*p_values.values(), *others])
    return dict(zip(p_values, adjusted[: len(p_values)], strict=True))


def _family(differences: Differences) -> dict[Key, tuple[str, Difference]]:
    """Returns (task, metric) -> (subject, difference) of every question but the average.

    These are the primary metric of every task that `asked` returns, and every perplexity.
    """
    primaries = {task: primary_metric(metrics) for task, metrics in differences.items()}
    family = {(task, primaries[task]): (task, d) for task, d in asked(differences).items()}
    for task, metric in primaries.items():
        if differences[task][metric].unit == "percent":
            name = "Word perplexity" if metric == TEXT_METRIC else "Perplexity"
            family[task, metric] = (f"{name} on {task}", differences[task][metric])
    return family


def _silent_sentences(differences: Differences) -> tuple[list[str], list[str]]:
    """Says of each task that cannot decide why it cannot.

    Returns:
        The sentences on tasks without a shown loss; and the sentences on tasks that show a loss all
        the same, for which SHIP is withheld.
    """
    silent, withheld = [], []
    for task, metrics in differences.items():
        d = metrics[primary_metric(metrics)]
        if d.near_chance:
            silent.append(
                f"{task} cannot decide: the base's {d.base:.1f} points are not clearly above "
                f"guessing ({d.chance:.1f} points, n = {d.n})."
            )
        elif d.too_weak:
            reason = (
                f"{task} cannot decide: the base scores {d.base:.1f} points (lower bound "
                f"{d.base_low:.1f}, n = {d.n}), too close to guessing ({d.chance or 0:.1f} points) "
                f"to lose the accepted {d.margin:.1f}."
            )
            assert d.retention_p is not None
            lost = 1 - d.retention_p <= paired.ALPHA
            (withheld if lost else silent).append(
                f"{reason} {_loss_sentence(d)}" if lost else reason
            )
    return silent, withheld


def _loss_sentence(difference: Difference) -> str:
    assert difference.retention is not None and difference.retention_p is not None
    kept, p = 100 * difference.retention, p_statement(1 - difference.retention_p)
    return (
        f"But the candidate scores {difference.candidate:.1f} there, clearly less than {kept:.0f} "
        f"% of the base's score above guessing ({p}): SHIP is withheld."
    )
