"""The comparison says what is true of a known sample, and refuses every planted mistake by name."""

import json
import math

import factories
import pytest

from model_serve_flow.comparison import compare, compare_workspace, mean_speedup, recommended
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.results import Item, Metric, TaskAccuracy
from model_serve_flow.workspace import Workspace, write_json

BASE = factories.model("base").sha256[:12]
INT8 = factories.model("w8a8-int8").sha256[:12]
INT4 = factories.model("w4a16-int4").sha256[:12]


def run(base_accuracy=None, base_performance=None, compression=None, accuracy=None, performance=None):
    """Compares w8a8-int8 with the base, with some of the results replaced."""
    made, measured, loaded = factories.candidate("w8a8-int8")
    results = [(compression or made, accuracy or measured, performance or loaded)]
    base = base_accuracy or factories.accuracy(), base_performance or factories.performance()
    return compare(factories.config(), *base, "note", results)


def with_task(result, name, task):
    return result.model_copy(update={"tasks": {**result.tasks, name: task}})


def with_engine(result, **changes):
    return result.model_copy(update={"engine": result.engine.model_copy(update=changes)})


def with_points(result, **changes):
    first, *rest = result.points
    return result.model_copy(update={"points": (first.model_copy(update=changes), *rest)})


# --- What it says ---


def test_sample_has_the_known_figures():
    int8 = factories.sample_comparison().candidates[0]
    analogies = int8.accuracy["word_analogies"]["acc"]
    assert (analogies.n, analogies.base, analogies.candidate) == (
        336,
        pytest.approx(21400 / 336),
        pytest.approx(21300 / 336),
    )
    assert analogies.difference == pytest.approx(-100 / 336)
    assert analogies.ci95[0] < analogies.difference < analogies.ci95[1]
    assert (analogies.unit, analogies.chance, analogies.near_chance, analogies.margin) == ("points", 25, False, 5.0)
    assert int8.accuracy["mmlu_dev"]["acc"].near_chance
    assert int8.size_ratio == pytest.approx(160_421_888 / 269_060_552)
    assert int8.kernel == "CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8"
    assert [point.concurrency for point in int8.performance] == [1, 4, 8]
    assert int8.performance[0].speedup == pytest.approx(1.35 * 0.996)


def test_perplexity_is_in_percent_and_bits_per_byte_has_the_same_margin():
    text = factories.sample_comparison().candidates[1].accuracy["wikipedia"]
    assert set(text) == {"word_perplexity", "bits_per_byte"}
    words, bits = text["word_perplexity"], text["bits_per_byte"]
    assert words.difference == pytest.approx(100 * (words.candidate / words.base - 1))
    assert (words.unit, bits.unit, words.higher_is_better) == ("percent", "bits/byte", False)
    assert bits.difference == pytest.approx(bits.candidate - bits.base)
    assert bits.difference / bits.margin == pytest.approx(
        math.log1p(words.difference / 100) / math.log1p(words.margin / 100)
    )


def test_good_candidate_ships_and_bad_one_does_not():
    comparison = factories.sample_comparison()
    assert [candidate.verdict for candidate in comparison.candidates] == ["SHIP", "DO NOT SHIP"]
    assert recommended(comparison) == "w8a8-int8"
    good, bad = (candidate.reasons for candidate in comparison.candidates)
    assert "within the accepted drop of 3.0 points" in good[0]
    assert "beyond the accepted drop of 3.0 points" in bad[0]
    assert any("mmlu_dev cannot decide" in reason for reason in good)
    assert any("1.33x" in reason for reason in good)


def test_suite_averages_only_tasks_that_can_decide():
    suite = factories.sample_comparison().candidates[0].suite
    assert suite.n == 336
    assert suite.difference == pytest.approx(-100 / 336)


def test_nothing_is_recommended_when_nothing_ships():
    comparison = factories.sample_comparison()
    assert recommended(comparison.model_copy(update={"candidates": comparison.candidates[1:]})) is None


def test_fastest_of_those_that_ship_is_recommended():
    comparison = factories.sample_comparison()
    slow = comparison.candidates[1].model_copy(update={"verdict": "SHIP"})
    both = comparison.model_copy(update={"candidates": (slow, comparison.candidates[0])})
    assert recommended(both) == "w8a8-int8"


def test_speedups_average_geometrically():
    points = factories.sample_comparison().candidates[0].performance[:2]
    halves = [points[0].model_copy(update={"speedup": 2.0}), points[1].model_copy(update={"speedup": 0.5})]
    assert mean_speedup(halves) == pytest.approx(1.0)


def test_equal_answers_differ_by_zero_and_ship():
    same = factories.accuracy("w8a8-int8").model_copy(update={"tasks": factories.accuracy().tasks})
    result = run(accuracy=same).candidates[0]
    differences = [d for metrics in result.accuracy.values() for d in metrics.values()]
    assert all(d.difference == 0 and d.ci95[0] <= 0 <= d.ci95[1] for d in differences)
    assert result.suite.ci95[0] < 0 < result.suite.ci95[1]
    assert result.verdict == "SHIP"


def test_equal_answers_on_few_items_are_never_a_reason_not_to_ship():
    task = factories.choice_task(20, 15)
    tasks = {"few": task}
    base = factories.accuracy().model_copy(update={"tasks": tasks})
    same = factories.accuracy("w8a8-int8").model_copy(update={"tasks": tasks})
    result = run(base_accuracy=base, accuracy=same).candidates[0]
    assert result.verdict == "INCONCLUSIVE"
    assert "not clearly within" in result.reasons[0]


def test_a_drop_of_a_near_chance_task_does_not_decide():
    worse = with_task(factories.accuracy("w8a8-int8"), "mmlu_dev", factories.choice_task(273, 78, 0, 78))
    assert run(accuracy=worse).candidates[0].verdict == "SHIP"


def test_without_a_deciding_task_it_is_inconclusive():
    base, measured = factories.accuracy(), factories.accuracy("w8a8-int8")
    keep = {"mmlu_dev", "wikipedia"}
    base, measured = (
        r.model_copy(update={"tasks": {k: v for k, v in r.tasks.items() if k in keep}}) for r in (base, measured)
    )
    result = run(base_accuracy=base, accuracy=measured).candidates[0]
    assert (result.verdict, result.suite) == ("INCONCLUSIVE", None)
    assert result.reasons[0].startswith("No task can decide")


def test_perplexity_alone_can_refuse():
    worse = with_task(factories.accuracy("w8a8-int8"), "wikipedia", factories.text_task(50, loss=0.3))
    result = run(accuracy=worse).candidates[0]
    assert result.verdict == "DO NOT SHIP"
    assert result.reasons[0].startswith("Word perplexity on wikipedia")


def test_several_metrics_continuous_ones_and_lower_is_better():
    def task(shift: float) -> TaskAccuracy:
        items = tuple(
            Item(
                **{
                    "id": str(i),
                    "answer": "",
                    "error": 0.2 + 0.01 * (i % 7) + shift * (1 + i % 3),
                    "exact_match,strict-match": i % 2,
                }
            )
            for i in range(40)
        )
        metrics = {
            "error": Metric(value=0.2, stderr=None, higher_is_better=False),
            "exact_match,strict-match": Metric(value=0.5, stderr=None, higher_is_better=True),
            "aggregate_only": Metric(value=1.0, stderr=None, higher_is_better=True),
        }
        return TaskAccuracy(n=40, chance=None, metrics=metrics, items=items)

    result = run(
        base_accuracy=with_task(factories.accuracy(), "qa", task(0)),
        accuracy=with_task(factories.accuracy("w8a8-int8"), "qa", task(0.05)),
    ).candidates[0]
    qa = result.accuracy["qa"]
    assert set(qa) == {"error", "exact_match,strict-match"}
    assert qa["error"].difference == pytest.approx(5 * sum(1 + i % 3 for i in range(40)) / 40)
    assert 0 < qa["error"].ci95[0] < qa["error"].difference < qa["error"].ci95[1]
    assert result.suite.n == 336 + 40  # by its primary metric, exact_match, not by its first


# --- What it refuses ---


def renamed(result, name):
    return result.model_copy(update={"model": result.model.model_copy(update={"name": name})})


@pytest.mark.parametrize("kind", ["accuracy", "performance"])
def test_swapped_candidates_are_refused_naming_both(kind):
    swapped = getattr(factories, kind)("w4a16-int4")
    with pytest.raises(FlowError, match="folder of w8a8-int8 is of w4a16-int4"):
        run(**{kind: swapped})
    with pytest.raises(FlowError, match=f"{INT8}.*{INT4}"):
        run(**{kind: renamed(swapped, "w8a8-int8")})


def test_base_served_under_the_candidates_name_is_refused():
    """All files agree on the candidate's name, checkpoint and protocol; only the engine's log gives it away."""
    plain = {"quantization": None, "kernels": ()}
    for kind in ("accuracy", "performance"):
        result = with_engine(getattr(factories, kind)("w8a8-int8"), **plain)
        with pytest.raises(FlowError, match=f"No quantised kernel served w8a8-int8 in its {kind} result"):
            run(**{kind: result})


def test_quantised_method_without_a_kernel_is_refused():
    with pytest.raises(FlowError, match="kernels none"):
        run(performance=with_engine(factories.performance("w8a8-int8"), kernels=()))


def test_base_served_quantised_is_refused():
    served = with_engine(factories.accuracy(), quantization="compressed-tensors", kernels=("K",))
    with pytest.raises(FlowError, match="accuracy result of base was served quantised"):
        run(base_accuracy=served)


def test_candidate_with_the_base_checkpoint_is_refused():
    sha = factories.model("base")
    made, measured, loaded = (
        result.model_copy(update={"model": sha.model_copy(update={"name": "w8a8-int8"})})
        for result in factories.candidate()
    )
    with pytest.raises(FlowError, match=f"w8a8-int8 is the same checkpoint as base \\({BASE}\\)"):
        run(compression=made, accuracy=measured, performance=loaded)


def test_candidate_made_from_another_base_is_refused():
    other = factories.compression().model_copy(
        update={"base": factories.model("w4a16-int4").model_copy(update={"name": "base"})}
    )
    with pytest.raises(FlowError, match=f"{INT4}.*{BASE}"):
        run(compression=other)


def test_two_bases_are_refused():
    other = renamed(factories.performance("w4a16-int4"), "base")
    with pytest.raises(FlowError, match=f"{BASE}.*{INT4}"):
        run(base_performance=other)


def test_another_protocol_is_refused_naming_the_field():
    with pytest.raises(FlowError, match="num_fewshot is None and 5"):
        run(accuracy=factories.accuracy("w8a8-int8", protocol={**factories.ACCURACY_PROTOCOL, "num_fewshot": 5}))
    with pytest.raises(FlowError, match="output_tokens is 32 and 64"):
        run(
            performance=factories.performance(
                "w8a8-int8", protocol={**factories.PERFORMANCE_PROTOCOL, "output_tokens": 64}
            )
        )


def test_another_engine_or_kernel_is_refused():
    with pytest.raises(FlowError, match=r"0.32.0.*0.31.0"):
        run(performance=with_engine(factories.performance("w8a8-int8"), version="0.31.0"))
    with pytest.raises(FlowError, match="different kernels"):
        run(performance=with_engine(factories.performance("w8a8-int8"), kernels=("Another",)))


def test_invalid_load_point_is_refused_with_its_reason():
    broken = with_points(factories.performance("w8a8-int8"), valid=False, invalid_reason="2 requests failed")
    with pytest.raises(FlowError, match="load point 1 of w8a8-int8 is not valid: 2 requests failed"):
        run(performance=broken)
    silent = with_points(factories.performance(), output_tokens_per_s=0.0)
    with pytest.raises(FlowError, match="load point 1 of base is not valid: no output tokens"):
        run(base_performance=silent)


def test_other_load_points_are_refused():
    fewer = factories.performance("w8a8-int8")
    with pytest.raises(FlowError, match=r"base was loaded at \[1, 4, 8\] and w8a8-int8 at \[1, 4\]"):
        run(performance=fewer.model_copy(update={"points": fewer.points[:2]}))
    with pytest.raises(FlowError, match=r"not the same work: output_tokens per request are 32.0 for base and 20.0"):
        run(performance=with_points(fewer, output_tokens=20.0))


def test_missing_extra_and_repeated_items_are_named():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    fewer = task.model_copy(update={"items": task.items[:17] + task.items[18:], "n": 335})
    with pytest.raises(FlowError, match="word_analogies, item 17: the candidate has no such item"):
        run(accuracy=with_task(result, "word_analogies", fewer))
    extra = task.model_copy(update={"items": (*task.items, Item(id="x1", answer="A", acc=1.0)), "n": 337})
    with pytest.raises(FlowError, match="word_analogies, item x1: the base has no such item"):
        run(accuracy=with_task(result, "word_analogies", extra))
    twice = task.model_copy(update={"items": (*task.items[:-1], task.items[3])})
    with pytest.raises(FlowError, match="word_analogies, item 3: it occurs more than once"):
        run(accuracy=with_task(result, "word_analogies", twice))


def test_item_without_the_metric_and_task_without_counterpart_are_named():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    bare = task.model_copy(update={"items": (*task.items[:5], Item(id="5", answer="B"), *task.items[6:])})
    with pytest.raises(FlowError, match="word_analogies, item 5: acc is missing"):
        run(accuracy=with_task(result, "word_analogies", bare))
    with pytest.raises(FlowError, match="accuracy result of w8a8-int8 lacks the task mmlu_dev"):
        run(accuracy=result.model_copy(update={"tasks": {k: v for k, v in result.tasks.items() if k != "mmlu_dev"}}))


def test_edited_figures_and_texts_are_refused():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    better = task.model_copy(update={"items": (*task.items[:-1], task.items[-1].model_copy(update={"acc": 1.0}))})
    with pytest.raises(FlowError, match=r"word_analogies: acc is given as .*, but its items give"):
        run(accuracy=with_task(result, "word_analogies", better))
    text = result.tasks["wikipedia"]
    longer = text.model_copy(update={"items": (text.items[0].model_copy(update={"words": 999.0}), *text.items[1:])})
    with pytest.raises(FlowError, match="wikipedia: words of a document differ"):
        run(accuracy=with_task(result, "wikipedia", longer))


def test_nan_is_refused_even_past_the_schema():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    holed = task.model_copy(update={"items": (Item.model_construct(id="0", answer="A", acc=math.nan), *task.items[1:])})
    with pytest.raises(FlowError, match="word_analogies cannot be compared: a value is NaN or infinite"):
        run(accuracy=with_task(result, "word_analogies", holed))


def test_one_candidate_given_twice_is_refused():
    with pytest.raises(FlowError, match="w8a8-int8 is given more than once"):
        compare(factories.config(), factories.accuracy(), factories.performance(), "", [factories.candidate()] * 2)


# --- Through the files ---


@pytest.fixture
def flow(tmp_path) -> Flow:
    space = Workspace(tmp_path)
    for name in ("base", "w8a8-int8", "w4a16-int4"):
        kinds = ("accuracy", "performance") if name == "base" else ("accuracy", "performance", "compression")
        for kind in kinds:
            write_json(space.results(name) / f"{kind}.json", getattr(factories, kind)(name))
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


def test_swapped_files_are_refused(flow):
    one, other = (flow.workspace.results(name) / "accuracy.json" for name in ("w8a8-int8", "w4a16-int4"))
    first, second = one.read_text(), other.read_text()
    one.write_text(second), other.write_text(first)
    with pytest.raises(FlowError, match="accuracy result in the folder of w8a8-int8 is of w4a16-int4"):
        compare_workspace(flow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["protocol"].update(num_fewshot=5), "the file was edited"),
        (lambda d: d["tasks"]["mmlu_dev"]["items"].pop(), "n is 273 but there are 272 items"),
        (
            lambda d: d["tasks"]["mmlu_dev"]["items"][0].update(acc=math.nan),
            "accuracy.json is not a valid AccuracyResult",
        ),
    ],
)
def test_edited_file_is_refused(flow, change, reason):
    edit(flow, "w8a8-int8", "accuracy", change)
    with pytest.raises(FlowError, match=reason):
        compare_workspace(flow)
    assert not (flow.workspace.report / "comparison.json").exists()


def test_missing_file_is_named(flow):
    (flow.workspace.results("w4a16-int4") / "performance.json").unlink()
    with pytest.raises(FlowError, match=r"w4a16-int4/performance.json is missing"):
        compare_workspace(flow)
