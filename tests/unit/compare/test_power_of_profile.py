"""The GPU profile's margins ship a candidate that lost nothing,
and its comments say the numbers found here.
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
COMMENT = (profiles_folder() / f"{NAME}.yaml").read_text(encoding="utf-8")


def drawn(loss=0.0, tasks=PLANNED, draws=DRAWS):
    """Draws of the tasks; `loss` of all, or a loss per task."""
    losses = loss if isinstance(loss, dict) else dict.fromkeys(tasks, loss)
    return {
        name: Draws.of(task, losses.get(name, 0.0), draws, seed=1) for name, task in tasks.items()
    }


def rate(loss=0.0, margins=MARGINS, tasks=PLANNED):
    """Percent of the draws that ship.

    The answers to one prompt count as independent: base and candidate answer it right with the same
    probability where nothing is lost, so their differences are.
    """
    return 100 * shipped(TIERS.counting(drawn(loss, tasks)), margins).mean()


def said(pattern):
    """The numbers of the profile's comment at this place, whatever its line breaks."""
    text = re.sub(r"\s*\n#\s*", " ", COMMENT)
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
    rows = re.findall(r"^#   (\w+) +(\d+) +(\d+) +(\d+) +([\d.]+)$", COMMENT, re.MULTILINE)
    assert {row[0]: tuple(map(float, row[1:])) for row in rows} == {
        name: (
            task.n,
            100 * task.score,
            round(100 * task.flips),
            round(100 * np.sqrt(task.flips / task.n), 2),
        )
        for name, task in PLANNED.items()
    }
    assert REPEATS.tasks == ("ifeval",) and PROFILE.accuracy.apply_chat_template


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
