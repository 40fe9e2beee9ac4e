"""Words the verdict as one plain sentence, for the first line of a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_serve_flow.compare.stats.paired import ALPHA
from model_serve_flow.flow.results.compared import Decision, Difference
from model_serve_flow.from_files.records import ComparedTask
from model_serve_flow.report.formatting import interval, number, unit

AVERAGE = "the average"


def sentence(
    verdict: Decision,
    tasks: Mapping[str, ComparedTask],
    suite: Difference | None,
    blocks: Sequence[str],
) -> str:
    """Words the verdict and what decided it."""
    counting = {name: task.difference for name, task in tasks.items() if task.tier != "advisory"}
    asked = {**({} if suite is None else {AVERAGE: suite}), **counting}
    if blocks and verdict == "INCONCLUSIVE":
        return f"{verdict}: {blocks[0]}"
    words = {"SHIP": _ships, "DO NOT SHIP": _fails, "INCONCLUSIVE": _open}[verdict]
    return f"{verdict}: {words(asked)}"


def _ships(asked: Mapping[str, Difference]) -> str:
    decided = [name for name, d in asked.items() if name != AVERAGE and d.adjusted_p is not None]
    count = "the one task that decides"
    if len(decided) > 1:
        count = f"each of the {len(decided)} tasks that decide"
    items = sum(asked[name].n for name in decided)
    return f"the candidate surely loses less than the accepted margin on {count} ({items:,} items)."


def _fails(asked: Mapping[str, Difference]) -> str:
    failing = {name: d for name, d in asked.items() if _p_values(d)[1] <= ALPHA}
    name = _worst(failing)
    others = len(failing.keys() - {name, AVERAGE})  # the average is of these very tasks
    more = f"; so is the loss on {others} other{'s' if others > 1 else ''}" if others else ""
    d = failing[name]
    return f"{_changed(name, d)}, surely more than the accepted {_amount(d.limit, d)}{more}."


def _open(asked: Mapping[str, Difference]) -> str:
    unsure = {name: d for name, d in asked.items() if min(_p_values(d)) > ALPHA}
    if AVERAGE not in asked:
        return _nothing_decides(asked)
    if not unsure:
        return f"{_lost(asked)} cannot decide, and shows a loss all the same."
    name = _worst(unsure)
    d = unsure[name]
    if d.too_few is not None:
        return f"{name} has too few items to decide ({d.n}; at least {d.too_few} are needed)."
    needed = f"; about {d.items_to_settle:,} items would settle it" if d.items_to_settle else ""
    accepted = _amount(d.limit, d)
    found = f"{_changed(name, d)} ({interval(d)})"
    return f"{found}, which may or may not exceed the accepted {accepted}{needed}."


def _nothing_decides(asked: Mapping[str, Difference]) -> str:
    if not asked:
        return "every task is advisory, so none decides."
    if all(difference.unit == "percent" for difference in asked.values()):
        return "only perplexities were compared, which do not show what a model answers."
    return "no task can decide: the base is too weak at them, or there are too few items."


def _lost(asked: Mapping[str, Difference]) -> str:
    """Finds the task that cannot decide, but whose loss withholds SHIP."""
    silent = [(name, d.retention_p) for name, d in asked.items() if d.too_weak]
    return next(name for name, p in silent if p is not None and 1 - p <= ALPHA)


def _p_values(difference: Difference) -> tuple[float, float]:
    """Returns the p-values of a loss beyond the limit and of a loss within the limit.

    A task that cannot decide gets 0 and 1, so that it counts neither as failing nor as unsure.
    """
    if difference.adjusted_p is not None:
        return difference.adjusted_p
    if difference.silent:
        return 0.0, 1.0
    p = difference.decision_p
    return (1.0, 1.0) if p is None else (p, 1 - p)


def _worst(asked: Mapping[str, Difference]) -> str:
    """Finds the task with the largest loss relative to its limit.

    The average counts only if nothing else is there.
    """

    def badness(name: str) -> tuple[bool, float]:
        return name != AVERAGE, _loss(asked[name]) / asked[name].limit

    return max(asked, key=badness)


def _loss(difference: Difference) -> float:
    return -difference.difference if difference.higher_is_better else difference.difference


def _changed(name: str, difference: Difference) -> str:
    """Words the change, for instance 'gsm8k fell by 3.1 points'."""
    subject = name if difference.unit != "percent" else f"the perplexity on {name}"
    if difference.difference == 0:
        return f"{subject} did not change"
    verb = "fell" if difference.difference < 0 else "rose"
    change = abs(difference.difference)
    if round(change, 1) == 0:
        return f"{subject} {verb} by less than {_amount(0.1, difference)}"
    return f"{subject} {verb} by {_amount(change, difference)}"


def _amount(value: float, difference: Difference) -> str:
    return f"{number(value)} {unit(difference)}"
