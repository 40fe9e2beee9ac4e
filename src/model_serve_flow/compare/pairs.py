"""Pairs the items of two measurements of one task by id, and finds the flips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.comparability import REMEASURE
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.compare.stats import paired
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.compared import FlippedItem, Flips
from model_serve_flow.flow.results.measured import Item, TaskAccuracy


@dataclass(frozen=True)
class Pairs:
    """The items of one task, each of the base with the same item of the candidate.

    The rows are in the base's order.
    """

    task: str
    base: TaskAccuracy
    candidate: TaskAccuracy
    rows: tuple[tuple[Item, Item], ...]

    def values(self, key: str) -> tuple[NDArray, NDArray] | None:
        """Returns the values of base and candidate, each [n].

        Returns:
            None if no item has the key.

        Raises:
            FlowError: only some items have the key.
        """
        have = [key in item.values for row in self.rows for item in row]
        if not any(have):
            return None
        if not all(have):
            lacking = self.rows[have.index(False) // 2][0].id
            raise FlowError(f"Task {self.task}, item {lacking}: {key} is missing.", REMEASURE)
        base, candidate = (
            np.array([row[side].values[key] for row in self.rows], dtype=float) for side in (0, 1)
        )
        return base, candidate

    def scores(self, key: str) -> tuple[NDArray, NDArray]:
        """Returns the values of base and candidate for a key that the items have."""
        values = self.values(key)
        assert values is not None, key
        return values

    def oriented(self, metric: str) -> tuple[NDArray, NDArray]:
        """Returns the values of base and candidate, turned so that 1 is right and a fall is a loss.

        Where lower is better, a value becomes 1 - value.
        """
        values = self.scores(metric)
        if self.base.metrics[metric].higher_is_better:
            return values
        return 1 - values[0], 1 - values[1]

    def right(self) -> tuple[NDArray, NDArray] | None:
        """Tells for each answer of base and candidate whether it is right, by the primary metric.

        Returns:
            None if no metric has values per item, or if the values are not 0 or 1.
        """
        scored = [metric for metric in self.base.metrics if self.values(metric) is not None]
        if not scored:
            return None
        values = self.oriented(primary_metric(scored))
        if not all(paired.is_binary(side) for side in values):
            return None
        return values[0] == 1, values[1] == 1


def pair(task: str, base: TaskAccuracy, candidate: TaskAccuracy, name: str = "candidate") -> Pairs:
    """Pairs two measurements of one task, item by item.

    Args:
        task: name of the task, for errors.
        base, candidate: the two measurements.
        name: how errors call the second measurement.

    Raises:
        FlowError: an item is missing, extra, repeated, or not the same question on both sides; the
            item is named.
    """
    for side in (base, candidate):
        ids = [item.id for item in side.items]
        if len(set(ids)) != len(ids):
            repeated = next(id for id in ids if ids.count(id) > 1)
            raise FlowError(f"Task {task}, item {repeated}: it occurs more than once.", REMEASURE)
    ours, theirs = ({item.id: item for item in side.items} for side in (base, candidate))
    if odd := sorted(ours.keys() ^ theirs.keys()):
        lacking = name if odd[0] in ours else "base"
        unpaired = f"{len(odd)} of {len(ours | theirs)} are unpaired"
        raise FlowError(
            f"Task {task}, item {odd[0]}: the {lacking} has no such item ({unpaired}).", REMEASURE
        )
    rows = tuple((item, theirs[item.id]) for item in base.items)
    for row in rows:
        _require_same_question(task, *row, name)
    return Pairs(task, base, candidate, rows)


def only(scored: TaskAccuracy, other: TaskAccuracy) -> TaskAccuracy:
    """Keeps the items of `scored` that `other` has too.

    If there is no such item, `scored` is returned unchanged, and `pair` refuses it.
    """
    ids = {item.id for item in other.items}
    items = tuple(item for item in scored.items if item.id in ids)
    return scored.model_copy(update={"items": items, "n": len(items)}) if items else scored


def _require_same_question(task: str, base: Item, candidate: Item, name: str) -> None:
    for field, part in (("prompt", "prompt"), ("expected", "expected answer")):
        if getattr(base, field) != getattr(candidate, field):
            raise FlowError(
                f"Task {task}, item {base.id}: its {part} is not the same for base and {name}.",
                REMEASURE,
            )


def count_flips(before: NDArray, after: NDArray) -> Flips:
    """Counts the flips between two vectors of right (true) and wrong (false) answers."""
    return Flips(
        right_to_wrong=int(np.sum(before & ~after)),
        wrong_to_right=int(np.sum(~before & after)),
    )


def flipped_items(pairs: Pairs) -> tuple[FlippedItem, ...]:
    """Lists the items whose answer became right or wrong, by the primary metric.

    The list is empty for a task that is not scored with 0 and 1.
    """
    right = pairs.right()
    if right is None:
        return ()
    return tuple(
        FlippedItem(
            task=pairs.task,
            id=base.id,
            became="right" if after else "wrong",
            prompt=base.prompt,
            expected=base.expected,
            base_answer=base.answer,
            candidate_answer=candidate.answer,
        )
        for (base, candidate), before, after in zip(pairs.rows, *right, strict=True)
        if before != after
    )
