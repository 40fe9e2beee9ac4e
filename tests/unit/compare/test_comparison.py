"""The whole comparison, of results in memory and of the files of a workspace."""

import json
import math

import factories
import pytest
from factories import compare_int8, with_task

from model_serve_flow.compare.comparison import compare_workspace
from model_serve_flow.compare.ranking import recommended
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.files import write_json


def test_sample_has_the_known_figures():
    comparison = factories.sample_comparison()
    int8, int4 = comparison.candidates
    assert [candidate.verdict for candidate in comparison.candidates] == ["SHIP", "DO NOT SHIP"]
    assert recommended(comparison) == "w8a8-int8"
    assert int8.size_ratio == pytest.approx(160_421_888 / 269_060_552)
    assert int8.kernel == "CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8"
    assert [point.concurrency for point in int8.performance] == [1, 4, 8]
    assert (comparison.base.capacity.streams, int8.capacity.streams, int4.capacity.streams) == (
        10,
        14,
        5,
    )
    assert (int8.diagnosis.bound, int4.diagnosis.reached < 0.3) == ("decode", True)
    assert {part.task for part in int8.slices} == {"mmlu_dev", "word_analogies"}
    assert len(int8.flipped) == 7 + 8 + 4 + 5


def test_speed_is_a_reason_only_for_a_model_that_may_ship():
    good, bad = (candidate.reasons for candidate in factories.sample_comparison().candidates)
    assert any("1.33x" in reason for reason in good)
    assert not any("tokens/s" in reason for reason in bad)
    assert all(any(reason.startswith("Size: ") for reason in reasons) for reasons in (good, bad))


def test_the_diagnosis_counts_what_the_engine_held_whatever_the_profile_says_by_now():
    base = factories.performance()
    floats = {"float_values": 134_530_276, "float_bytes": 269_060_552}
    wide = base.model_copy(
        update={
            "engine": base.engine.model_copy(update={"dtype": "float32"}),
            "model": base.model.model_copy(update=floats),
        }
    )
    assert compare_int8(base_performance=wide).diagnosis.base_bytes_per_token == 2 * 269_060_552
    assert compare_int8().diagnosis.base_bytes_per_token == 269_060_552


def test_base_measured_against_itself():
    """The same answers and distributions under a candidate's name: nothing differs,
    and nothing speaks against it.
    """
    same = factories.accuracy("w8a8-int8").model_copy(update={"tasks": factories.accuracy().tasks})
    result = compare_int8(
        accuracy=same, distribution=factories.distribution("w8a8-int8", noise=0.0)
    )
    differences = [d for metrics in result.accuracy.values() for d in metrics.values()]
    assert all(d.difference == 0 and d.ci95[0] <= 0 <= d.ci95[1] for d in differences)
    assert result.suite.ci95[0] < 0 < result.suite.ci95[1]
    assert all(
        d.mcnemar_p == 1 and d.recovery_percent in (None, 100)
        for d in differences
        if d.flips is not None
    )
    assert result.flipped == ()
    assert (result.kl.mean, result.top1_agreement) == (pytest.approx(0, abs=1e-12), 1.0)
    assert result.verdict == "SHIP"
    assert [reason for reason in result.reasons if "flips" in reason] == [
        "Its flips, 0.0 % of the answers, cannot be told from those that the engine makes by "
        "itself: 1.0 % [0.4, 3.2] of 305 answers asked twice."
    ]


def test_more_flips_than_the_engine_makes_are_not_put_down_to_it():
    assert not [
        reason
        for reason in factories.sample_comparison().candidates[1].reasons
        if "flips" in reason
    ]


def test_same_accuracy_with_other_answers_is_told_apart_by_flips_and_kl():
    result = factories.accuracy("w8a8-int8")
    tasks = [
        factories.choice_task(336, 214, flips, flips, asks=factories.analogy) for flips in (1, 30)
    ]
    near, far = (
        compare_int8(
            accuracy=with_task(result, "word_analogies", task),
            distribution=factories.distribution("w8a8-int8", noise=noise),
        )
        for task, noise in zip(tasks, (0.05, 0.9), strict=True)
    )
    one, other = (c.accuracy["word_analogies"]["acc"] for c in (near, far))
    assert (one.base, one.candidate) == (other.base, other.candidate)
    assert one.difference == other.difference == 0
    assert (one.flips.right_to_wrong, other.flips.right_to_wrong) == (1, 30)
    assert other.ci95[0] < one.ci95[0]
    assert near.kl.ci95[1] < far.kl.ci95[0]
    assert near.top1_agreement > far.top1_agreement


def test_flips_beyond_the_engines_own_are_not_excused():
    assert not any(
        "by itself" in reason for reason in factories.sample_comparison().candidates[0].reasons
    )


def test_what_the_profile_does_not_ask_for_is_none():
    none = dict.fromkeys(
        ("base_accuracy_again", "base_distribution", "base_distribution_again", "distribution")
    )
    result = compare_int8(**none)
    assert (result.kl, result.top1_agreement, result.noise_floor) == (None, None, None)
    without = {
        key: result.model_copy(update={"capacity": None})
        for key, result in (
            ("base_performance", factories.performance()),
            ("performance", factories.performance("w8a8-int8")),
        )
    }
    result = compare_int8(**without)
    assert (result.capacity, result.cost_per_million_output_tokens) == (None, None)


# --- Through the files ---


def results_of(name):
    if name == "base":
        kinds = ("accuracy", "performance", "distribution")
        again = {
            kind: getattr(factories, kind)() for kind in ("accuracy_again", "distribution_again")
        }
        return {**{kind: getattr(factories, kind)() for kind in kinds}, **again}
    return {
        kind: getattr(factories, kind)(name)
        for kind in ("compression", "accuracy", "performance", "distribution")
    }


@pytest.fixture
def flow(tmp_path) -> Flow:
    space = Workspace(tmp_path)
    for name in ("base", "w8a8-int8", "w4a16-int4"):
        for kind, result in results_of(name).items():
            write_json(space.results(name) / f"{kind}.json", result)
    return Flow(factories.config(), space)


def edit(flow: Flow, model: str, kind: str, change) -> None:
    path = flow.workspace.results(model) / f"{kind}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_workspace_is_compared_and_written(flow):
    written = compare_workspace(flow)
    assert written == factories.sample_comparison()
    assert flow.workspace.comparison() == written


@pytest.mark.parametrize("kind", ["accuracy", "distribution"])
def test_swapped_files_are_refused(flow, kind):
    one, other = (
        flow.workspace.results(name) / f"{kind}.json" for name in ("w8a8-int8", "w4a16-int4")
    )
    first, second = one.read_text(), other.read_text()
    one.write_text(second), other.write_text(first)
    with pytest.raises(
        FlowError, match=f"{kind} result in the folder of w8a8-int8 is of w4a16-int4"
    ):
        compare_workspace(flow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["protocol"].update(num_fewshot=5), "the file was edited"),
        (lambda d: d["tasks"]["mmlu_dev"]["items"].pop(), "n is 273 but there are 272 items"),
        (
            lambda d: d["tasks"]["mmlu_dev"]["items"][0].update(acc=math.nan),
            r"accuracy.json is not valid JSON: tasks\.mmlu_dev\.items\.0\.acc is nan",
        ),
        (
            lambda d: d["tasks"]["mmlu_dev"]["items"][4].update(prompt="Easier?"),
            "mmlu_dev, item 4: its prompt is not",
        ),
    ],
)
def test_edited_file_is_refused(flow, change, reason):
    edit(flow, "w8a8-int8", "accuracy", change)
    with pytest.raises(FlowError, match=reason):
        compare_workspace(flow)
    assert not (flow.workspace.report / "comparison.json").exists()


@pytest.mark.parametrize(
    "file",
    [
        "w4a16-int4/performance",
        "w4a16-int4/distribution",
        "base/distribution",
        "base/accuracy_again",
        "base/distribution_again",
    ],
)
def test_missing_file_is_named(flow, file):
    (flow.workspace.root / "results" / f"{file}.json").unlink()
    with pytest.raises(FlowError, match=f"{file}.json is missing"):
        compare_workspace(flow)


def test_files_the_profile_does_not_ask_for_are_not_read(flow):
    plain = flow.config.accuracy.model_copy(update={"again": None, "distribution": None})
    for path in flow.workspace.root.glob("results/*/*"):
        if "again" in path.name or "distribution" in path.name:
            path.write_text("not read")
    found = compare_workspace(
        Flow(flow.config.model_copy(update={"accuracy": plain}), flow.workspace)
    )
    assert all(
        candidate.kl is None and candidate.noise_floor is None for candidate in found.candidates
    )
