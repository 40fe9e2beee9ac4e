"""Chooses the items that lm-eval asks: drawn for the noise floor, or all up to a look."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

LEAST_PAIRS = 2
ROLLING = "loglikelihood_rolling"  # a scored text has no answer that could flip


def subsample(
    manager: Any, tasks: tuple[str, ...], per_task: int, *, limit: int | None, seed: int
) -> dict[str, Any]:
    """Builds arguments of lm-eval's `simple_evaluate` that ask some items with unchanged prompts.

    Args:
        manager: lm-eval's `TaskManager`.
        tasks: the profile's tasks; tasks whose items cannot flip are left out.
        per_task: items of each task. A task of several parts gives at least one item of each part.
        limit: `accuracy.limit`: items are drawn from the first `limit` items of each part; None:
            all.
        seed: the same seed draws the same items.

    Returns:
        `tasks`, which is empty if no task has items that can flip, and `samples`.
    """

    def choose(name: str, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        return draw(sizes, per_task, random.Random(f"{seed} {name}"))

    return _selected(manager, tasks, choose, limit, texts=False)


def first_looks(
    manager: Any, tasks: tuple[str, ...], look: int, looks: int, *, limit: int | None, seed: int
) -> dict[str, Any]:
    """Builds arguments of `simple_evaluate` that ask the items of all looks up to this look.

    Each part of a task gives its share, in a random order that depends on the seed only. The last
    look includes all items.

    Args:
        manager: lm-eval's `TaskManager`.
        tasks: the profile's tasks.
        look: number of the look, from 1.
        looks: number of planned looks.
        limit: `accuracy.limit`; None: all items.
        seed: the profile's seed.

    Returns:
        `tasks` and `samples`.
    """

    def choose(name: str, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        return {
            part: until_look(size, look, looks, f"{seed} {name} {part}")
            for part, size in sizes.items()
        }

    return _selected(manager, tasks, choose, limit, texts=True)


def until_look(size: int, look: int, looks: int, seed: str) -> list[int]:
    """Lists the item numbers of one part that are asked up to a look, in rising order.

    The list has at least two items, because a paired difference needs two.
    """
    order = random.Random(seed).sample(range(size), size)
    return sorted(order[: max(LEAST_PAIRS, size * look // looks)])


def _selected(
    manager: Any,
    tasks: tuple[str, ...],
    choose: Callable[[str, Mapping[str, int]], dict[str, list[int]]],
    limit: int | None,
    texts: bool,
) -> dict[str, Any]:
    objects: list[Any] = []
    samples: dict[str, list[int]] = {}
    for name in tasks:
        loaded = manager.load([name])
        everything = loaded["tasks"].items()
        parts = {part: task for part, task in everything if texts or task.OUTPUT_TYPE != ROLLING}
        if not parts:
            continue
        sizes = {part: len(task.eval_docs) for part, task in parts.items()}
        chosen = choose(name, {part: min(size, limit or size) for part, size in sizes.items()})
        for part, task in parts.items():
            build = task.build_all_requests
            task.build_all_requests = functools.partial(_build, task, build, chosen[part])
        samples |= chosen
        objects += [loaded["groups"][name]] if name in loaded["groups"] else list(parts.values())
    return {"tasks": objects, "samples": samples}


def draw(sizes: Mapping[str, int], number: int, generator: random.Random) -> dict[str, list[int]]:
    """Draws item numbers of each part in proportion to its size, at least one, in rising order.

    Args:
        sizes: part -> its number of items, at least 1.
        number: items to draw over all parts; all items if there are fewer.
        generator: the random generator.
    """
    total = sum(sizes.values())
    number, offset = min(number, total), generator.random()
    # Places at equal distances along all parts in a row; a part gets the places that fall into it.
    places = [(place + offset) * total / number for place in range(number)]
    ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
    chosen = {}
    for part, size in sizes.items():
        count = sum(ends[part] - size <= place < ends[part] for place in places)
        chosen[part] = sorted(generator.sample(range(size), min(size, max(1, count))))
    return chosen


def _build(
    task: Any, build: Callable[..., None], chosen: list[int], *, samples: list[int], **settings: Any
) -> None:
    """Builds lm-eval's requests of the chosen items.

    lm-eval draws few-shot examples prompt after prompt. A prompt keeps its examples only if the
    examples of all earlier items are drawn too. With `samples`, lm-eval numbers items among the
    chosen ones.
    """
    build(**{**settings, "limit": max(chosen) + 1})
    places = {item: place for place, item in enumerate(chosen)}
    task._instances = [instance for instance in task.instances if instance.doc_id in places]
    for instance in task._instances:
        instance.doc_id = places[instance.doc_id]
