"""Margins are sealed before the base is measured;
a later change is seen in the report and in the ship record.
"""

import json

import factories
import pytest

from model_serve_flow.compare.margins import check_seal, of_plan, seal_margins, seal_sentence
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest, update_manifest
from model_serve_flow.flow.profile import Repeats
from model_serve_flow.flow.results.measured import protocol_hash
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.report.sections import sections
from model_serve_flow.report.wording import caveat
from model_serve_flow.system.files import write_json


@pytest.fixture
def flow(tmp_path) -> Flow:
    return Flow(factories.config(), Workspace(tmp_path))


def with_margin(flow: Flow, points: float) -> Flow:
    verdict = flow.config.verdict.model_copy(
        update={"task_margin_points": points, "rationale": "Another."}
    )
    return Flow(flow.config.model_copy(update={"verdict": verdict}), flow.workspace)


def measured(flow: Flow) -> None:
    write_json(flow.workspace.results("base") / "accuracy.json", factories.accuracy())


def test_margins_sealed_in_time_and_kept(flow):
    seal_margins(flow)
    measured(flow)
    seal_margins(flow)
    found = check_seal(with_margin(flow, 5.0))  # another rationale is no other margin
    assert (found.before_measuring, found.changed) == (True, {})
    assert (
        seal_sentence(found)
        == "The margins are the profile's and were fixed before anything was measured."
    )


def test_a_margin_changed_after_the_measurement_is_named(flow):
    seal_margins(flow)
    measured(flow)
    wider = with_margin(flow, 9.0)
    seal_margins(wider)  # 01 once more does not renew the seal
    found = check_seal(wider)
    assert found.changed == {"task_margin_points": (5.0, 9.0)}
    shown = factories.sample_comparison().model_copy(update={"margins": found})
    for text in (seal_sentence(found), caveat(shown, {}), sections(shown)[0].notes[0].text):
        assert "task_margin_points from 5 to 9" in text and "fixed before" not in text


def test_margins_may_change_while_nothing_is_measured(flow):
    seal_margins(flow)
    seal_margins(with_margin(flow, 9.0))
    assert check_seal(with_margin(flow, 9.0)).changed == {}


def test_a_seal_that_came_late_or_never_does_not_claim_more(flow):
    assert check_seal(flow) is None
    assert "not recorded" in sections(factories.sample_comparison())[0].notes[0].text
    measured(flow)
    seal_margins(flow)
    assert check_seal(flow).before_measuring is False
    assert "fixed before" not in seal_sentence(check_seal(flow)) + seal_sentence(None)


def test_an_edited_seal_does_not_hold(flow):
    seal_margins(flow)
    measured(flow)
    seal = read_manifest(flow.workspace)["margins"]
    update_manifest(
        flow.workspace,
        replace=True,
        margins={**seal, "values": {**seal["values"], "retention": 0.5}},
    )
    assert check_seal(flow).changed["task_margin_points"] == (None, 5.0)
    assert "task_margin_points from nothing to 5" in seal_sentence(check_seal(flow))
    assert json.loads(check_seal(flow).model_dump_json())["before_measuring"] is True


def test_a_plan_of_looks_is_sealed_with_the_number_of_items(flow):
    def planned(looks, limit):
        verdict = flow.config.verdict.model_copy(update={"looks": looks})
        accuracy = flow.config.accuracy.model_copy(update={"limit": limit})
        return Flow(
            flow.config.model_copy(update={"verdict": verdict, "accuracy": accuracy}),
            flow.workspace,
        )

    seal_margins(planned(4, 100))
    (flow.workspace.results("base") / "accuracy.json").parent.mkdir(parents=True, exist_ok=True)
    (flow.workspace.results("base") / "accuracy.json").write_text("{}")
    assert check_seal(planned(4, 100)).changed == {}
    assert check_seal(planned(4, 400)).changed == {"accuracy.limit": (100, 400)}
    assert check_seal(planned(8, 100)).changed == {"looks": (4, 8)}
    assert check_seal(planned(1, 100)).changed == {"looks": (4, 1)}


@pytest.mark.parametrize("measured_model", ["base", "w8a8-int8"])
def test_the_number_of_items_is_sealed_once_a_candidate_is_measured(flow, measured_model):
    """Also without looks: measuring again with more items is a look that was not planned."""

    def planned(limit, per_category=12):
        packaged = flow.config.accuracy.packaged.model_copy(
            update={"analogies_per_category": per_category}
        )
        update = {"limit": limit, "packaged": packaged}
        accuracy = flow.config.accuracy.model_copy(update=update)
        return Flow(flow.config.model_copy(update={"accuracy": accuracy}), flow.workspace)

    seal_margins(planned(20))
    write_json(
        flow.workspace.results(measured_model) / "accuracy.json", factories.accuracy(measured_model)
    )
    seal_margins(planned(None, 40))
    assert check_seal(planned(None, 40)).changed == (
        {}
        if measured_model == "base"
        else {
            "accuracy.limit": (20, None),
            "accuracy.packaged.analogies_per_category": (12, 40),
        }
    )


@pytest.mark.parametrize(("looks", "left"), [(1, ()), (4, ("looks", "accuracy.limit"))])
def test_a_seal_of_an_earlier_version_with_less_of_the_plan_holds(flow, looks, left):
    once = flow.config.verdict.model_copy(update={"looks": looks})
    flow = Flow(flow.config.model_copy(update={"verdict": once}), flow.workspace)
    seal = seal_margins(flow)
    measured(flow)
    old = {
        name: value for name, value in seal["values"].items() if name in left or not of_plan(name)
    }
    sealed = {**seal, "values": old, "sha256": protocol_hash(old)}
    update_manifest(flow.workspace, replace=True, margins=sealed)
    assert check_seal(flow).changed == {}


def test_the_answers_to_an_item_belong_to_a_plan_of_looks(flow):
    def planned(count):
        verdict = flow.config.verdict.model_copy(update={"looks": 4})
        repeats = Repeats(tasks=("free",), count=count, temperature=0.6)
        accuracy = flow.config.accuracy.model_copy(update={"repeats": repeats})
        return Flow(
            flow.config.model_copy(update={"verdict": verdict, "accuracy": accuracy}),
            flow.workspace,
        )

    seal_margins(planned(4))
    assert check_seal(planned(8)).changed == {"accuracy.repeats.count": (4, 8)}
