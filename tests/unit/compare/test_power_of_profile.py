"""The GPU profiles' margins ship a candidate that lost nothing,
and their comments say the numbers found here.
"""

import re

import factories
import numpy as np
import pytest
from support.power import Draws, Planned, shipped

from model_serve_flow.compare.differences import compare_suite, compare_task
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.compare.verdict import decide
from model_serve_flow.flow.load import load_profile, profiles_folder

NAME = "gpu-llama-3.1-8b"
PROFILE, DRAWS = load_profile(NAME), 4000
MARGINS = PROFILE.verdict
TIERS = Tiers(MARGINS.required, MARGINS.advisory)
PROMPTS, REPEATS = 541, PROFILE.accuracy.repeats
PLANNED = {
    "mmlu": Planned(14042, 0.68, 0.25, 0.06),
    "arc_easy": Planned(2376, 0.82, 0.25, 0.05),
    "hellaswag": Planned(10042, 0.78, 0.25, 0.05),
    "ifeval": Planned(PROMPTS * REPEATS.count, 0.77, 0.0, 0.14),
    "gsm8k": Planned(1319, 0.83, 0.0, 0.09),
}
ONCE = PLANNED | {"ifeval": Planned(PROMPTS, 0.77, 0.0, 0.14)}
RESTLESS = PLANNED | {"ifeval": Planned(PROMPTS * REPEATS.count, 0.77, 0.0, 0.2)}
SMALL, LARGE = load_profile("colab-t4"), load_profile("gpu-llama-3.3-70b")
PLANNED_SMALL = {
    "mmlu": Planned(14042, 0.58, 0.25, 0.09),
    "arc_easy": Planned(2376, 0.75, 0.25, 0.08),
    "hellaswag": Planned(10042, 0.66, 0.25, 0.06),
}
GSM8K_SMALL = {"gsm8k": Planned(1319, 0.60, 0.0, 0.14)}


def comment(name):
    return (profiles_folder() / f"{name}.yaml").read_text(encoding="utf-8")


COMMENT = comment(NAME)


def drawn(loss=0.0, tasks=PLANNED, draws=DRAWS):
    """Draws of the tasks; `loss` of all, or a loss per task."""
    losses = loss if isinstance(loss, dict) else dict.fromkeys(tasks, loss)
    return {
        name: Draws.of(task, losses.get(name, 0.0), draws, seed=1) for name, task in tasks.items()
    }


def many_rate(tasks, margins):
    """Percent of the draws that ship if every task decides."""
    return 100 * shipped(drawn(tasks=tasks), margins).mean()


def rate(loss=0.0, margins=MARGINS, tasks=PLANNED):
    """Percent of the draws that ship.

    The answers to one prompt count as independent: base and candidate answer it right with the same
    probability where nothing is lost, so their differences are.
    """
    return 100 * shipped(TIERS.counting(drawn(loss, tasks)), margins).mean()


def said(pattern, whole=COMMENT):
    """The numbers of a profile's comment at this place, whatever its line breaks."""
    text = re.sub(r"\s*\n#\s*", " ", whole)
    return [float(number) for number in re.search(pattern, text).groups()]


def test_a_candidate_that_lost_nothing_ships():
    found = rate()
    assert found >= 80
    assert [found, rate(0.005), rate(0.01)] == pytest.approx(
        said(
            r"ships in (\d+) % of all cases, one that lost half a point .*? in (\d+) %, one .*? in "
            r"(\d+) %"
        ),
        abs=1,
    )


def test_one_look_would_ship_a_few_more():
    once = MARGINS.model_copy(update={"looks": 1})
    assert MARGINS.looks == 4
    assert [rate(loss, once) for loss in (0.0, 0.005, 0.01)] == pytest.approx(
        said(r"One look would ship (\d+) %, (\d+) %, (\d+) %"), abs=1
    )


def test_a_narrower_margin_or_one_answer_to_each_prompt_would_not_do():
    narrower = MARGINS.model_copy(update={"task_margin_points": 2.0})
    assert rate(margins=narrower) < 80
    once = [rate(tasks=ONCE), rate(margins=narrower, tasks=ONCE)]
    assert once == pytest.approx(
        said(r"would ship in (\d+) %, with a margin of 2\.0 in (\d+) %"), abs=1
    )
    assert [rate(tasks=RESTLESS)] == pytest.approx(said(r"candidate still ships in (\d+) %"), abs=1)


def test_a_loss_of_the_margin_on_one_task_seldom_ships():
    for task in TIERS.counting(PLANNED):
        most = 0.05 * (PLANNED[task].score - PLANNED[task].chance)  # what retention allows
        on_margin = min(MARGINS.task_margin_points / 100, most)
        assert rate({task: on_margin}) <= 2.5 + 2 * 0.25


def test_the_comment_has_the_tasks_and_errors_of_the_calculation():
    assert set(PROFILE.accuracy.tasks) == set(PLANNED)
    assert table(COMMENT) == expected_table(PLANNED)
    assert REPEATS.tasks == ("ifeval",) and PROFILE.accuracy.apply_chat_template


def table(whole):
    rows = re.findall(r"^#   (\w+) +(\d+) +(\d+) +(\d+) +([\d.]+)$", whole, re.MULTILINE)
    return {row[0]: tuple(map(float, row[1:])) for row in rows}


def expected_table(tasks):
    return {
        name: (
            *(task.n, round(100 * task.score), round(100 * task.flips)),
            round(100 * np.sqrt(task.flips / task.n), 2),
        )
        for name, task in tasks.items()
    }


def test_the_small_models_profile_decides_on_the_tasks_that_can_settle_its_margins():
    margins, text = SMALL.verdict, comment("colab-t4")
    assert table(text) == expected_table(PLANNED_SMALL)
    assert set(SMALL.accuracy.tasks) - set(margins.advisory) == set(PLANNED_SMALL)
    found = [rate(loss, margins, PLANNED_SMALL) for loss in (0.0, 0.005, 0.01)]
    whole = r"ships in (\d+) % of all cases, .*? in (\d+) %, .*? in (\d+) %"
    assert found == pytest.approx(said(whole, text), abs=1)
    with_gsm8k = many_rate(PLANNED_SMALL | GSM8K_SMALL, margins)
    assert [with_gsm8k] == pytest.approx(said(r"ship in (\d+) % only", text), abs=1)


def test_the_larger_models_profile_ships_as_often_as_the_one_it_extends():
    text = comment("gpu-llama-3.3-70b")
    scores = re.search(r"tasks: ([\d, ]+) and (\d+) %", re.sub(r"\s*\n#\s*", " ", text))
    planned = {
        name: Planned(task.n, int(score) / 100, task.chance, task.flips)
        for (name, task), score in zip(
            PLANNED.items(), [*scores[1].split(", "), scores[2]], strict=True
        )
    }
    assert LARGE.verdict == MARGINS
    assert [rate(tasks=planned)] == pytest.approx(said(r"ships in (\d+) %", text), abs=1)


def scored(draws, which):
    """Base and candidate of one draw as the verdict gets them."""
    gained, lost, right = (int(column[which]) for column in (draws.gained, draws.lost, draws.right))
    base, candidate = np.zeros(draws.n, bool), np.zeros(draws.n, bool)
    base[:right], candidate[lost : right + gained] = True, True
    return [
        factories.scored_task(side, draws.chance or None, lambda i: {})
        for side in (base, candidate)
    ]


def test_the_verdict_itself_ships_what_is_counted_as_shipped():
    tasks = drawn(draws=200)
    counted = shipped(TIERS.counting(tasks), MARGINS.model_copy(update={"looks": 1}))
    for which in (int(np.argmax(counted)), int(np.argmin(counted))):
        differences = {}
        for name, draws in tasks.items():
            pairs = pair(name, *scored(draws, which))
            differences[name] = compare_task(pairs, MARGINS, 0)
            p = differences[name]["acc"].decision_p
            assert p == pytest.approx(draws.p_values(MARGINS)[which], abs=1e-6)
        suite = compare_suite(TIERS.counting(differences), MARGINS)
        assert decide(differences, suite, TIERS)[0] == (
            "SHIP" if counted[which] else "INCONCLUSIVE"
        )


def test_the_vectorised_retention_is_the_librarys():
    draws = Draws.of(Planned(800, 0.6, 0.25, 0.08), 0.01, 40, seed=2)
    for which, p in enumerate(draws.retention_p(0.95)):
        base, candidate = (
            [item.values["acc"] for item in side.items] for side in scored(draws, which)
        )
        expected = paired.binary_retention_p(base, candidate, 0.95, 0.25)
        assert p == pytest.approx(expected, abs=1e-6) or min(p, expected) > 0.4
