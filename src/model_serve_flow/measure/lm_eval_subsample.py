"""Which items the base is asked again: some of every task, drawn once by the profile's seed."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

LEAST_PAIRS = 2
ROLLING = "loglikelihood_rolling"  # a text that is scored has no answer that could flip


def subsample(
    manager: Any, tasks: tuple[str, ...], per_task: int, *, limit: int | None, seed: int
) -> dict[str, Any]:
    """Arguments of lm-eval's `simple_evaluate` that ask some items, with their prompts unchanged.

    Args:
        manager: lm-eval's `TaskManager`.
        tasks: the profile's; those whose items cannot flip are left out.
        per_task: items of each task; of a task of several parts, at least one of each part.
        limit: `accuracy.limit`: the first items of each part, of which these are drawn.
        seed: with the same seed the same items are drawn.

    Returns:
        `tasks`, which is empty if the items of none can flip, and `samples`.
    """

    def choose(name: str, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        return draw(sizes, per_task, random.Random(f"{seed} {name}"))

    return _selected(manager, tasks, choose, limit, texts=False)


def first_looks(
    manager: Any, tasks: tuple[str, ...], look: int, looks: int, *, limit: int | None, seed: int
) -> dict[str, Any]:
    """Arguments of `simple_evaluate` that ask the items of the looks up to this one:
    `look` of `looks` parts.

    Every part of a task gives its share, in a random order that is the seed's alone; the last look
    has all.
    """

    def choose(name: str, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        return {
            part: until_look(size, look, looks, f"{seed} {name} {part}")
            for part, size in sizes.items()
        }

    return _selected(manager, tasks, choose, limit, texts=True)


def until_look(size: int, look: int, looks: int, seed: str) -> list[int]:
    """Item numbers of one part that are asked up to a look, rising; at least two,
    which a paired difference needs.
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
    """Item numbers of each part, rising: as many as its size asks for, and at least one.

    Args:
        sizes: part -> its number of items, at least 1.
        number: how many in all; all of them if there are fewer.
        generator: draws them.
    """
    total = sum(sizes.values())
    number, offset = min(number, total), generator.random()
    # Places at equal distances along all parts in a row: each part gets those that fall into it.
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

    lm-eval draws examples for one prompt after the other: a prompt keeps its examples only if those
    of the items before it are drawn as well. Told `samples`, lm-eval counts items among these.
    """
    build(**{**settings, "limit": max(chosen) + 1})
    places = {item: place for place, item in enumerate(chosen)}
    task._instances = [instance for instance in task.instances if instance.doc_id in places]
    for instance in task._instances:
        instance.doc_id = places[instance.doc_id]
