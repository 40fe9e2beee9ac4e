"""The items of the second measurement: drawn by the seed, from all parts of a task alike."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_serve_flow.measure.lm_eval_subsample import draw

MMLU = {f"subject {number}": 100 + 25 * number for number in range(57)}


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 60),
    st.integers(0, 9),
)
def test_every_part_gives_items_of_its_own_and_none_twice(sizes, number, seed):
    chosen = draw(sizes, number, random.Random(seed))
    assert chosen.keys() == sizes.keys()
    for part, items in chosen.items():
        assert items and items == sorted(set(items)) and set(items) <= set(range(sizes[part]))
    total = sum(map(len, chosen.values()))
    assert min(number, sum(sizes.values())) <= total <= number + len(sizes)


def test_a_part_gives_as_many_as_its_size_asks_for():
    chosen = draw(MMLU, 570, random.Random(0))
    for part, items in chosen.items():
        assert len(items) == pytest.approx(570 * MMLU[part] / sum(MMLU.values()), abs=1)


def test_the_seed_alone_decides_which():
    one, same, other = (draw(MMLU, 100, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_every_item_has_the_same_chance():
    counts = [0] * 30
    for seed in range(3000):
        for item in draw({"task": 30}, 9, random.Random(seed))["task"]:
            counts[item] += 1
    assert min(counts) > 0.85 * 900 and max(counts) < 1.15 * 900


def test_a_small_task_gives_all():
    assert draw({"task": 3}, 100, random.Random(0)) == {"task": [0, 1, 2]}
