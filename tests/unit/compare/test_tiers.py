"""A required task that is missing blocks SHIP, and an advisory task never decides."""

import pytest

from model_serve_flow.compare.tiers import Tiers, withheld

TIERS = Tiers(required=("gsm8k", "ifeval"), advisory=("hellaswag",))


def test_every_task_has_one_tier():
    assert [TIERS.of(task) for task in ("gsm8k", "mmlu", "hellaswag")] == [
        "required",
        "deciding",
        "advisory",
    ]
    with pytest.raises(ValueError, match="gsm8k is named both as required and as advisory"):
        Tiers(("gsm8k", "mmlu"), ("gsm8k",))


def test_advisory_tasks_do_not_count():
    tasks = {"mmlu": 1, "hellaswag": 2, "gsm8k": 3}
    assert TIERS.counting(tasks) == {"mmlu": 1, "gsm8k": 3}
    assert Tiers().counting(tasks) == tasks


def test_a_required_task_that_is_missing_or_cannot_decide_blocks():
    assert TIERS.blockers({"gsm8k", "ifeval", "mmlu"}, {"gsm8k", "ifeval"}) == []
    assert TIERS.blockers({"gsm8k", "mmlu"}, {"mmlu"}) == [
        "gsm8k is required, but it cannot decide: SHIP is withheld.",
        "ifeval is required, but it was not measured: SHIP is withheld.",
    ]
    assert Tiers().blockers(set(), set()) == []


def test_only_ship_is_withheld():
    assert withheld("SHIP", []) == "SHIP"
    assert [withheld(verdict, ["x"]) for verdict in ("SHIP", "DO NOT SHIP", "INCONCLUSIVE")] == [
        "INCONCLUSIVE",
        "DO NOT SHIP",
        "INCONCLUSIVE",
    ]
