"""The difference on parts of a task: where a loss sits,
and where there are too few items to tell.
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
# a slice that could not even show a drop of this many margins of its task is too small
MARGINS_TO_FIND = 2
PROMPT_LENGTH = "prompt length"
LENGTHS = ("short", "middle", "long")


def compare_slices(tasks: Iterable[Pairs], margins: Verdict) -> tuple[Slice, ...]:
    """The slices of every task scored with 0 and 1: by each group of its items,
    and by the length of the prompt.

    The McNemar p-values are Holm-corrected over all slices that are large enough; a slice that is
    not can show nothing, and its adjusted p-value is 1.
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
    """(value, which items) of each value; none where the values tell nothing: only one,
    or a different one per item.
    """
    values = np.array([label or "" for label in labels])
    names, counts = np.unique(values[values != ""], return_counts=True)
    if len(names) < 2 or counts.max() == 1:
        return []
    return [(name, values == name) for name in (order or names.tolist()) if name in names]


def _lengths(items: Sequence[Item]) -> list[str | None]:
    """Which third of the task's prompts each item's prompt belongs to, by its characters;
    None without a prompt.
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
    """Whether n items are too few whatever they answer:
    they would miss a drop even if no item changed but by it.

    Taken from n alone. With the share of items that changed, the answers would choose which slices
    are tested, and the slices in which most went wrong would be called too small.
    """
    return (
        n < LEAST_ITEMS or 100 * paired.smallest_detectable_drop(n, 0.0) > MARGINS_TO_FIND * margin
    )
