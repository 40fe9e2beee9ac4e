"""Every planted mistake in what is compared is refused by name."""

import dataclasses
import math

import factories
import pytest
from factories import compare_int8 as run
from factories import with_task

from model_serve_flow.compare.comparison import compare
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import Latency, protocol_hash

BASE = factories.model("base").sha256[:12]
INT8 = factories.model("w8a8-int8").sha256[:12]
INT4 = factories.model("w4a16-int4").sha256[:12]


def with_engine(result, **changes):
    return result.model_copy(update={"engine": result.engine.model_copy(update=changes)})


def with_point(result, place=0, **changes):
    points = list(result.points)
    points[place] = points[place].model_copy(update=changes)
    return result.model_copy(update={"points": tuple(points)})


def renamed(result, name):
    return result.model_copy(update={"model": result.model.model_copy(update={"name": name})})


def with_protocol(result, protocol):
    return result.model_copy(
        update={"protocol": protocol, "protocol_hash": protocol_hash(protocol)}
    )


# --- The right models ---


@pytest.mark.parametrize("kind", ["accuracy", "performance", "distribution"])
def test_swapped_candidates_are_refused_naming_both(kind):
    swapped = getattr(factories, kind)("w4a16-int4")
    with pytest.raises(FlowError, match="folder of w8a8-int8 is of w4a16-int4"):
        run(**{kind: swapped})
    with pytest.raises(FlowError, match=f"{INT8}.*{INT4}"):
        run(**{kind: renamed(swapped, "w8a8-int8")})


@pytest.mark.parametrize("kind", ["accuracy", "performance", "distribution"])
def test_base_served_under_the_candidates_name_is_refused(kind):
    """All files agree on the candidate's name, checkpoint and protocol;
    only the engine's log gives it away.
    """
    result = with_engine(getattr(factories, kind)("w8a8-int8"), quantization=None, kernels=())
    with pytest.raises(
        FlowError, match=f"No quantised kernel served w8a8-int8 in its {kind} result"
    ):
        run(**{kind: result})


def test_quantised_method_without_a_kernel_is_refused():
    with pytest.raises(FlowError, match="kernels none"):
        run(performance=with_engine(factories.performance("w8a8-int8"), kernels=()))


@pytest.mark.parametrize(
    "kind", ["accuracy", "performance", "accuracy_again", "distribution", "distribution_again"]
)
def test_base_served_quantised_is_refused(kind):
    served = with_engine(
        getattr(factories, kind)(), quantization="compressed-tensors", kernels=("K",)
    )
    with pytest.raises(FlowError, match="result of base was served quantised"):
        run(**{f"base_{kind}": served})


def test_candidate_with_the_base_checkpoint_is_refused():
    sha = factories.model("base").model_copy(update={"name": "w8a8-int8"})
    results = factories.candidate()
    parts = {
        "compression": results.compression,
        **{result.kind: result for result in results.measurements},
    }
    with pytest.raises(FlowError, match=f"w8a8-int8 is the same checkpoint as base \\({BASE}\\)"):
        run(**{kind: result.model_copy(update={"model": sha}) for kind, result in parts.items()})


def test_candidate_made_from_another_base_is_refused():
    other = factories.model("w4a16-int4").model_copy(update={"name": "base"})
    with pytest.raises(FlowError, match=f"{INT4}.*{BASE}"):
        run(compression=factories.compression().model_copy(update={"base": other}))


@pytest.mark.parametrize("kind", ["performance", "distribution"])
def test_two_bases_are_refused(kind):
    with pytest.raises(FlowError, match=f"{BASE}.*{INT4}"):
        run(**{f"base_{kind}": renamed(getattr(factories, kind)("w4a16-int4"), "base")})


def test_one_candidate_given_twice_is_refused():
    with pytest.raises(FlowError, match="w8a8-int8 is given more than once"):
        compare(factories.config(), factories.base(), [factories.candidate()] * 2)


# --- Measured in the same way ---


@pytest.mark.parametrize(
    ("kind", "protocol", "reason"),
    [
        ("accuracy", {**factories.ACCURACY_PROTOCOL, "seed": 5}, "seed is None and 5"),
        ("distribution", {**factories.DISTRIBUTION_PROTOCOL, "seed": 5}, "seed is None and 5"),
        ("performance", {**factories.PERFORMANCE_PROTOCOL, "seed": 5}, "seed is None and 5"),
    ],
)
def test_another_protocol_is_refused_naming_the_field(kind, protocol, reason):
    with pytest.raises(FlowError, match=reason):
        run(**{kind: getattr(factories, kind)("w8a8-int8", protocol=protocol)})


def test_another_engine_or_kernel_is_refused():
    with pytest.raises(FlowError, match=r"0.32.0.*0.31.0"):
        run(performance=with_engine(factories.performance("w8a8-int8"), version="0.31.0"))
    with pytest.raises(FlowError, match=r"0.32.0.*0.31.0"):
        run(base_accuracy_again=with_engine(factories.accuracy_again(), version="0.31.0"))
    with pytest.raises(FlowError, match="different kernels"):
        run(performance=with_engine(factories.performance("w8a8-int8"), kernels=("Another",)))


# --- What the profile lets differ ---


def declaring(*differs, **changes):
    """Compares w8a8-int8, where the profile lets these differ, with changed results."""
    config = factories.config().model_copy(update={"differs": differs})
    candidate = dataclasses.replace(factories.candidate(), **changes)
    return compare(config, factories.base(), [candidate]).candidates[0]


def other_settings(kind="performance", **more):
    """A result whose server got another flag than the base's."""
    result = getattr(factories, kind)("w8a8-int8")
    arguments = ["--dtype", "bfloat16", "--kv-cache-dtype", "fp8"]
    return with_protocol(result, {**result.protocol, "engine_arguments": arguments, **more})


def test_other_engine_settings_are_refused_unless_the_profile_lets_them_differ():
    changed = {"performance": other_settings()}
    with pytest.raises(FlowError, match=r"engine_arguments is .*kv-cache-dtype"):
        declaring("checkpoint", **changed)
    reasons = " ".join(declaring("checkpoint", "engine_settings", **changed).reasons)
    assert "settings differ, as the profile lets them (performance)" in reasons
    assert "--kv-cache-dtype fp8 for w8a8-int8" in reasons


def test_what_is_not_declared_is_refused_beside_what_is():
    with pytest.raises(FlowError, match="seed is None and 5"):
        declaring("checkpoint", "engine_settings", performance=other_settings(seed=5))


def test_another_engine_is_refused_unless_the_profile_lets_it_differ():
    changed = {
        kind: with_engine(
            with_protocol(result, {**result.protocol, "engine_version": "0.33.0"}),
            version="0.33.0",
        )
        for kind in ("accuracy", "performance", "distribution")
        for result in [getattr(factories, kind)("w8a8-int8")]
    }
    with pytest.raises(FlowError, match="engine_version"):
        declaring("checkpoint", "engine_settings", **changed)
    reasons = " ".join(declaring("checkpoint", "engine", **changed).reasons)
    assert "vLLM 0.32.0 served the base, vLLM 0.33.0 served w8a8-int8" in reasons
    del changed["distribution"]  # its own results must still be of one engine
    with pytest.raises(FlowError, match=r"0.33.0.*0.32.0"):
        declaring("checkpoint", "engine", **changed)


def test_another_checkpoint_is_refused_where_only_settings_may_differ():
    with pytest.raises(FlowError, match="does not let the checkpoint differ"):
        declaring("engine_settings")


def test_an_engine_that_names_no_kernels_cannot_prove_a_candidate():
    unnamed = {"name": "Tiny", "names_kernels": False, "quantization": None, "kernels": ()}
    kinds = ("accuracy", "performance", "distribution")
    theirs = {kind: with_engine(getattr(factories, kind)("w8a8-int8"), **unnamed) for kind in kinds}
    ours = {
        f"base_{kind}": with_engine(getattr(factories, kind)(), **unnamed)
        for kind in (*kinds, "accuracy_again", "distribution_again")
    }
    with pytest.raises(FlowError, match="vLLM served base for its accuracy result, and Tiny"):
        run(**theirs)
    assert run().verdict == "SHIP"
    unproven = run(**ours, **theirs)
    assert unproven.verdict == "INCONCLUSIVE"
    assert "Tiny does not tell which kernels it used" in unproven.reasons[0]


def test_second_measurement_may_differ_in_its_batches_only():
    again = factories.accuracy_again()
    changed = {**again.protocol, "accuracy": {**again.protocol["accuracy"], "num_fewshot": 5}}
    with pytest.raises(
        FlowError, match=r"second accuracy result was not measured like its first: accuracy is .*5"
    ):
        run(base_accuracy_again=with_protocol(again, changed))
    with pytest.raises(FlowError, match="has a second distribution result but no first"):
        run(base_distribution=None, distribution=None)


def test_distribution_of_one_side_only_is_refused():
    with pytest.raises(FlowError, match="distribution result of w8a8-int8 is missing"):
        run(distribution=None)
    with pytest.raises(FlowError, match="distribution result of base is missing"):
        run(base_distribution=None, base_distribution_again=None)


def test_task_without_counterpart_and_another_chance_are_named():
    result = factories.accuracy("w8a8-int8")
    fewer = result.model_copy(
        update={"tasks": {k: v for k, v in result.tasks.items() if k != "mmlu_dev"}}
    )
    with pytest.raises(FlowError, match="accuracy result of w8a8-int8 lacks the task mmlu_dev"):
        run(accuracy=fewer)
    with pytest.raises(
        FlowError, match=r"mmlu_dev: guessing scores 0.25 for base and 0.5 for w8a8-int8"
    ):
        run(accuracy=with_task(result, "mmlu_dev", factories.choice_task(273, 78, chance=0.5)))


# --- The same load ---


@pytest.mark.parametrize(
    ("side", "place", "changes", "concurrency", "reason"),
    [
        (
            "performance",
            5,
            {"valid": False, "invalid_reason": "2 requests failed"},
            8,
            "w8a8-int8: repeat 2: 2 requests failed",
        ),
        (
            "base_performance",
            0,
            {"output_tokens_per_s": 0.0},
            1,
            "base: repeat 1: no output tokens",
        ),
        (
            "base_performance",
            0,
            {"itl_ms": Latency(mean=0, p50=0, p95=0, p99=0)},
            1,
            "base: repeat 1: no latencies",
        ),
        ("base_performance", 1, {"errored_requests": 3}, 4, "base: repeat 1: 3 requests failed"),
        (
            "performance",
            7,
            {"output_tokens": 20.0},
            4,
            "output tokens per request are 32.0 for base and 20.0",
        ),
    ],
)
def test_a_load_point_that_may_not_be_compared_is_named_and_everything_else_stands(
    side, place, changes, concurrency, reason
):
    name = "base" if side == "base_performance" else "w8a8-int8"
    found = run(**{side: with_point(factories.performance(name), place, **changes)})
    whole = run()
    (load,) = found.unmeasured
    assert load.concurrency == concurrency and reason in load.reason
    assert found.performance == tuple(
        point for point in whole.performance if point.concurrency != concurrency
    )
    assert found.verdict == whole.verdict and found.accuracy == whole.accuracy
    assert any(
        f"Not measured at {concurrency} concurrent requests" in reason for reason in found.reasons
    )


def test_a_load_point_that_was_not_reached_is_named():
    fewer = factories.performance("w8a8-int8")
    without_8 = tuple(point for point in fewer.points if point.concurrency != 8)
    found = run(performance=fewer.model_copy(update={"points": without_8}))
    assert [point.concurrency for point in found.performance] == [1, 4]
    assert found.unmeasured[0].reason.startswith(
        "w8a8-int8: repeat 1: the measurement was interrupted before it"
    )
    found = run(performance=fewer.model_copy(update={"points": fewer.points[:-1]}))
    assert (
        found.unmeasured[0].reason
        == "w8a8-int8: repeat 3: the measurement was interrupted before it"
    )


def test_without_any_load_point_the_verdict_still_stands():
    nothing = factories.performance("w8a8-int8").model_copy(update={"points": ()})
    found = run(performance=nothing)
    assert found.performance == () and [load.concurrency for load in found.unmeasured] == [1, 4, 8]
    assert found.verdict == run().verdict and found.diagnosis is None
    assert not any("Output tokens/s" in reason for reason in found.reasons)


def test_capacity_at_other_objectives_is_refused():
    result = factories.performance("w8a8-int8")
    easier = result.capacity.model_copy(update={"ttft_ms": 3000.0})
    with pytest.raises(FlowError, match=r"\(1500.0, 60.0, 0.95\).*\(3000.0, 60.0, 0.95\)"):
        run(performance=result.model_copy(update={"capacity": easier}))
    with pytest.raises(FlowError, match="and that of w8a8-int8 at None"):
        run(performance=result.model_copy(update={"capacity": None}))


# --- Past the schema ---


def test_nan_is_refused_even_past_the_schema():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    holed = task.items[0].model_copy(update={"acc": math.nan})
    changed = task.model_copy(update={"items": (holed, *task.items[1:])})
    with pytest.raises(
        FlowError, match="word_analogies cannot be compared: a value is NaN or infinite"
    ):
        run(accuracy=with_task(result, "word_analogies", changed))
