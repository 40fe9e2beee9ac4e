"""Compares base and candidate on parts of a task (slices).

Slices show where a loss is, and where there are too few items to tell.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.pairs import Pairs
from model_serve_flow.compare.stats import paired
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.compared import Slice
from model_serve_flow.flow.results.measured import QUESTION, Item

LEAST_ITEMS = 10
# A slice is too small if it cannot detect a drop of this many margins of its task.
MARGINS_TO_FIND = 2
PROMPT_LENGTH = "prompt length"
LENGTHS = ("short", "middle", "long")


def compare_slices(tasks: Iterable[Pairs], margins: Verdict) -> tuple[Slice, ...]:
    """Compares the slices of every task that is scored with 0 and 1.

    A slice is a group of the items, or a range of prompt lengths. The McNemar p-values are
    Holm-corrected over all slices that are large enough. A slice that is too small can show
    nothing: its adjusted p-value is 1.
    """
    slices = [part for pairs in tasks for part in _slices(pairs, margins.task_margin_points)]
    large = [part for part in slices if not part.too_small]
    adjusted = iter(paired.holm([part.mcnemar_p for part in large]))
    return tuple(
        part if part.too_small else part.model_copy(update={"adjusted_p": next(adjusted)})
        for part in slices
    )


def _slices(pairs: Pairs, margin: float) -> Iterator[Slice]:
    right = pairs.right()
    if right is None:
        return
    base, candidate = (side.astype(float) for side in right)
    items = pairs.base.items
    for group in sorted({key for item in items for key in item.groups} - {QUESTION}):
        for value, chosen in _parts([item.groups.get(group) for item in items]):
            yield _slice(pairs.task, group, value, base[chosen], candidate[chosen], margin)
    for value, chosen in _parts(_lengths(items), order=LENGTHS):
        yield _slice(pairs.task, PROMPT_LENGTH, value, base[chosen], candidate[chosen], margin)


def _parts(
    labels: Sequence[str | None], order: Sequence[str] | None = None
) -> list[tuple[str, NDArray]]:
    """Returns (value, [n] true for its items) of each value.

    The list is empty if there is only one value, or a different value for every item.
    """
    values = np.array([label or "" for label in labels])
    names, counts = np.unique(values[values != ""], return_counts=True)
    if len(names) < 2 or counts.max() == 1:
        return []
    return [(name, values == name) for name in (order or names.tolist()) if name in names]


def _lengths(items: Sequence[Item]) -> list[str | None]:
    """Returns for each item in which third of the task's prompts it is, by number of characters.

    An item without a prompt gets None.
    """
    lengths = [len(item.prompt) for item in items if item.prompt is not None]
    if not lengths:
        return [None] * len(items)
    bounds = np.quantile(lengths, (1 / 3, 2 / 3))
    return [
        None if item.prompt is None else LENGTHS[int((len(item.prompt) > bounds).sum())]
        for item in items
    ]


def _slice(
    task: str, group: str, value: str, base: NDArray, candidate: NDArray, margin: float
) -> Slice:
    n = base.size
    interval = paired.paired_binary_difference(base, candidate).scaled(100)
    return Slice(
        task=task,
        group=group,
        value=value,
        n=n,
        base=100 * base.mean(),
        candidate=100 * candidate.mean(),
        difference=interval.difference,
        ci95=(interval.low, interval.high),
        mcnemar_p=paired.mcnemar_p(base, candidate),
        adjusted_p=1.0,
        too_small=_too_small(n, margin),
    )


@functools.cache
def _too_small(n: int, margin: float) -> bool:
    """Tells whether n items are too few to detect the drop even in the best case.

    In the best case no item changes except the items that make the drop.

    Only n decides. If the share of changed items counted, the answers would choose which slices are
    tested, and the slices with the most wrong answers would be called too small.
    """
    return (
        n < LEAST_ITEMS or 100 * paired.smallest_detectable_drop(n, 0.0) > MARGINS_TO_FIND * margin
    )
