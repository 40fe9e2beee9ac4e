"""Over 2,000 damaged profiles, results, and outputs of GuideLLM and lm-eval:
each is refused or means what it says.

A mutation is drawn, not listed: any place of a sound document may go, change its kind, or take a
value that is negative, huge, not finite, nested or of another language. What is accepted must come
out as it went in.
"""

import copy
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import factories
import pytest
import test_accuracy
import test_capacity
import test_performance
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile, profiles_folder
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    CompressionResult,
    DistributionResult,
    PerformanceResult,
)
from model_serve_flow.measure.capacity import read_capacity
from model_serve_flow.measure.lm_eval_results import read_task
from model_serve_flow.measure.load_points import read_load_points
from model_serve_flow.system.files import read_result

INPUTS: Counter[str] = Counter()
ACCEPTED: Counter[str] = Counter()

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7.5, -0.0, 1e-320, 1e308, 10**30, -(10**30), 10**400, math.nan,
    math.inf, -math.inf,
    "", "5", "true", "nan", "Größe", "\ud800", "\x00", "../up", "x" * 5000,
    [], [[]], [None], [1, "a"], {}, {"a": 1}, {"": {}}, {"mean": 3},
)  # fmt: skip
OPERATIONS = (
    "replace",
    "replace",
    "replace",
    "drop",
    "add",
    "rename",
    "wrap",
    "nest",
    "negate",
    "repeat",
)


def fuzz(examples: int):
    """Settings of one property: the same inputs in every run,
    and no data base of earlier failures.
    """
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """The way to every value inside, by key and number."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        found for key, child in inner for found in ((*place, key), *places(child, (*place, key)))
    ]


@st.composite
def damaged(draw, document: Any) -> Any:
    """The document after one to three mutations."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(document)
        if not ways:
            break
        *parents, last = draw(st.sampled_from(ways))
        node = document
        for key in parents:
            node = node[key]
        mutate(draw, node, last)
    return document


def mutate(draw, node: Any, key: Any) -> None:
    operation, value = draw(st.sampled_from(OPERATIONS)), node[key]
    if operation == "drop":
        del node[key]
    elif operation == "add" and isinstance(node, dict):
        node[draw(st.sampled_from(("unknown", "", "n", "0")))] = copy.deepcopy(
            draw(st.sampled_from(JUNK))
        )
    elif operation == "rename" and isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    elif operation == "wrap":
        node[key] = [value]
    elif operation == "nest":
        for _ in range(draw(st.sampled_from((3, 30, 100)))):  # deeper ones are in test_bad_input.py
            value = {"x": value}
        node[key] = value
    elif operation == "negate" and isinstance(value, int | float):
        node[key] = -value
    elif operation == "repeat" and isinstance(value, list):
        node[key] = value + value
    else:
        node[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))


def differences(wanted: Any, read: Any, place: str = "") -> list[str]:
    """Where something given was read as something else; what was not given, and has a default,
    does not count.
    """
    if isinstance(wanted, dict) and isinstance(read, dict):
        return [
            d
            for key in wanted
            for d in differences(wanted[key], read.get(key, "(absent)"), f"{place}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(read, list) and len(wanted) == len(read):
        return [
            d
            for i, pair in enumerate(zip(wanted, read, strict=True))
            for d in differences(*pair, f"{place}.{i}")
        ]
    rounded = float(wanted) if isinstance(read, float) and isinstance(wanted, int) else wanted
    same = rounded == read and isinstance(wanted, bool) == isinstance(read, bool)
    return [] if same else [f"{place}: {wanted!r:.60} became {read!r:.60}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def outcome(kind: str, read) -> Any:
    """What was read, or the FlowError; any other exception fails the test."""
    INPUTS[kind] += 1
    try:
        result = read()
    except FlowError as error:
        return error
    ACCEPTED[kind] += 1
    return result


# Profiles

PROFILES = {
    path.stem: yaml.safe_load(path.read_text()) for path in profiles_folder().glob("*.yaml")
}


@fuzz(500)
@given(data=st.data())
def test_profiles(folder, data):
    name = data.draw(st.sampled_from(sorted(PROFILES)))
    document = data.draw(damaged(PROFILES[name]))
    path = folder / "profile.yaml"
    # JSON is YAML, but for these two; a library's dump would give up on deep structures itself
    path.write_text(json.dumps(document).replace("NaN", ".nan").replace("Infinity", ".inf"))
    read = outcome("profile", lambda: load_profile(str(path)))
    if isinstance(read, FlowError):
        assert re.search(r"profile\.yaml|Unknown profile|extends itself", read.problem)
        return
    meant = {
        key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "extends"
    }
    assert not differences(meant, read.model_dump(mode="json"))


PUNCTUATION = "{}[]:-&*!?|>#'\"%@`\n\t 0123456789abx._,"


@fuzz(200)
@given(
    text=st.one_of(
        st.binary(max_size=60), st.text(alphabet=PUNCTUATION, max_size=60).map(str.encode)
    )
)
def test_profiles_of_any_text(folder, text):
    path = folder / "any.yaml"
    path.write_bytes(text)
    read = outcome("profile", lambda: load_profile(str(path)))
    assert isinstance(read, FlowError) and (
        "any.yaml" in read.problem or "Unknown profile" in read.problem
    )


@fuzz(150)
@given(data=st.data())
def test_truncated_profiles(folder, data):
    name = data.draw(st.sampled_from(sorted(PROFILES)))
    whole = (profiles_folder() / f"{name}.yaml").read_bytes()
    path = folder / "cut.yaml"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    read = outcome("profile", lambda: load_profile(str(path)))
    if isinstance(read, FlowError):
        assert "cut.yaml" in read.problem


# Results


def small(kind: str) -> Any:
    """A sound result, short enough that a mutation often meets the fields and not the items."""
    tasks = {"mmlu_dev": factories.choice_task(3, 2), "wikipedia": factories.text_task(2)}
    made = {
        "accuracy": lambda: factories.accuracy().model_copy(update={"tasks": tasks}),
        "performance": lambda: factories.performance(points=factories.performance().points[:2]),
        "compression": factories.compression,
        "distribution": lambda: factories.distribution().model_copy(
            update={"documents": short_documents()}
        ),
        "comparison": factories.sample_comparison,
    }[kind]().model_dump(mode="json")
    for candidate in made.get("candidates", ()):
        candidate |= {"slices": candidate["slices"][:1], "flipped": candidate["flipped"][:1]}
    return made


def short_documents() -> tuple:
    document = factories.distribution().documents[0]
    rows = {key: getattr(document, key)[:2] for key in ("top_ids", "top_logprobs", "own_logprobs")}
    return (document.model_copy(update={"tokens": document.tokens[:3], **rows}),)


KINDS = {
    "accuracy": AccuracyResult,
    "performance": PerformanceResult,
    "compression": CompressionResult,
    "distribution": DistributionResult,
    "comparison": Comparison,
}
RESULTS = {kind: small(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@fuzz(160)
@given(data=st.data())
def test_results(folder, kind, data):
    document = data.draw(damaged(RESULTS[kind]))
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(document))
    check_result(path, kind, document)


@pytest.mark.parametrize("kind", KINDS)
@fuzz(60)
@given(data=st.data())
def test_results_with_damaged_bytes(folder, kind, data):
    whole = json.dumps(RESULTS[kind]).encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    new = (
        b""
        if cut
        else data.draw(
            st.sampled_from((b"\xff", b'"', b"}", b"9", b"-", b"e", b"\x00", b"NaN", b"1e999"))
        )
    )
    damaged_bytes = whole[:place] + (new + whole[place + 1 :] if not cut else b"")
    path = folder / f"{kind}.json"
    path.write_bytes(damaged_bytes)
    try:
        document = json.loads(damaged_bytes)
    except ValueError:
        document = None
    check_result(path, kind, document)


def check_result(path: Path, kind: str, document: Any) -> None:
    read = outcome(kind, lambda: read_result(path, KINDS[kind]))
    if isinstance(read, FlowError):
        assert re.search(
            rf"{path.name} is not (valid JSON|a valid {KINDS[kind].__name__}): \S+", read.problem
        )
        return
    assert not differences(document, read.model_dump(mode="json"))


# GuideLLM


@fuzz(300)
@given(data=st.data())
def test_load_points(folder, data):
    document = data.draw(damaged({"benchmarks": test_performance.two_rounds()}))
    path = folder / "guidellm.json"
    path.write_text(json.dumps(document))
    given = test_performance.CONFIG, test_performance.IDLE, test_performance.PLACES
    points = outcome("guidellm", lambda: read_load_points(path, *given))
    if isinstance(points, FlowError):
        assert re.search(
            r"guidellm\.json is not (valid JSON|an output of GuideLLM 0\.8): \S+|was asked for \[",
            str(points),
        )
        return
    for point, load in zip(points, document["benchmarks"], strict=True):
        metrics, latency = load["metrics"], load["metrics"]["time_to_first_token_ms"]["successful"]
        assert not differences(metrics["request_totals"]["successful"], point.completed_requests)
        assert not differences(
            metrics["output_tokens_per_second"]["total"]["mean"], point.output_tokens_per_s
        )
        percentiles = {key: latency["percentiles"][key] for key in ("p50", "p95", "p99")}
        assert not differences(percentiles, point.ttft_ms.model_dump())


@fuzz(200)
@given(data=st.data())
def test_goodput_searches(folder, data):
    probes = [
        (8, test_capacity.PASSES),
        (16, test_capacity.LIKELY_PASSES),
        (32, test_capacity.FAILS),
    ]
    document = data.draw(damaged(test_capacity.search_report(probes)))
    path = folder / "goodput.json"
    path.write_text(json.dumps(document))
    capacity = outcome("goodput", lambda: read_capacity(path, test_capacity.OBJECTIVES))
    if isinstance(capacity, FlowError):
        assert re.search(
            r"goodput\.json is not (valid JSON|a goodput search of GuideLLM 0\.8): \S+",
            capacity.problem,
        )
        return
    search = document["conclusions"][0]
    given = [
        search.get("best_passing_streams") or 0,
        [probe["attainment"] for probe in search["probes"]],
    ]
    assert not differences(
        given, [capacity.streams, [probe.attainment for probe in capacity.probes]]
    )


# lm-eval

ANSWERS = test_accuracy.results(
    "q",
    [test_accuracy.choice(i, [-3, -1, -2, -4], float(i == 0), "ab"[i]) for i in range(2)],
    {"acc,none": 0.5, "acc_stderr,none": 0.3},
)
TEXTS = test_accuracy.results(
    "q",
    [test_accuracy.written(-70.0, {"word_perplexity": (-70.0, 20), "bits_per_byte": (-70.0, 100)})],
    {"word_perplexity,none": 33.1, "bits_per_byte,none": 1.0},
)
WRITTEN = test_accuracy.results(
    "q", [test_accuracy.written("42", {"exact_match": 1.0}, "strict")], {"exact_match,strict": 1.0}
)


@pytest.mark.parametrize("raw", [ANSWERS, TEXTS, WRITTEN], ids=["choices", "texts", "written"])
@fuzz(130)
@given(data=st.data())
def test_lm_eval_results(raw, data):
    document = data.draw(damaged(json.loads(json.dumps(raw))))
    task = outcome("lm-eval", lambda: read_task("q", document))
    if isinstance(task, FlowError):
        assert "task 'q'" in task.problem
        return
    rows = document["results"]["q"].items()
    figures = {
        key.removesuffix(",none"): value
        for key, value in rows
        if "," in key and "_stderr," not in key
    }
    assert figures == {name: metric.value for name, metric in task.metrics.items()}
    values = [value for item in task.items for value in item.values.values()]
    assert all(math.isfinite(value) for value in values)


def test_more_than_two_thousand_inputs_were_read_some_of_them_sound():
    """Last in the file: of every kind some inputs were accepted,
    so that the checks of what was read were made.
    """
    if len(INPUTS) < 9:
        pytest.skip("only a part of the file was run")
    assert sum(INPUTS.values()) >= 2000
    assert all(0 < ACCEPTED[kind] < INPUTS[kind] for kind in INPUTS), (INPUTS, ACCEPTED)
