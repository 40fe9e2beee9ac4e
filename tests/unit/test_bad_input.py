"""Results and profiles that are damaged in one known way: each is refused, by file,
field and reason.
"""

import json
import math

import factories
import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import environment_overrides, load_profile, parse_set
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    CompressionResult,
    DistributionResult,
    PerformanceResult,
)
from model_serve_flow.system.files import read_result, write_json

SOUND = {
    "accuracy": (AccuracyResult, factories.accuracy),
    "performance": (PerformanceResult, factories.performance),
    "compression": (CompressionResult, factories.compression),
    "distribution": (DistributionResult, factories.distribution),
    "comparison": (Comparison, factories.sample_comparison),
}


@pytest.fixture(params=SOUND)
def kind(request):
    return request.param


@pytest.fixture
def path(kind, tmp_path):
    return write_json(tmp_path / f"{kind}.json", SOUND[kind][1]())


def refused(path, kind, reason):
    with pytest.raises(FlowError, match=reason) as caught:
        read_result(path, SOUND[kind][0])
    assert str(path) in caught.value.problem and caught.value.hint


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_sound_result_is_read_as_it_was_written(path, kind):
    assert read_result(path, SOUND[kind][0]) == SOUND[kind][1]()


def test_another_schema_version(path, kind):
    edit(path, schema_version="1.0")
    refused(path, kind, r"schema_version: Input should be '2\.0'")


def test_the_result_of_another_module(path, kind):
    edit(path, kind="speed")
    refused(path, kind, f"kind: Input should be '{kind}'")


def test_a_key_of_another_version(path, kind):
    edit(path, verified=True)
    refused(path, kind, "verified: Extra inputs are not permitted")


def test_truncated(path, kind):
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        refused(path, kind, "is not valid JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_found_wherever_they_are(path, kind, value):
    edit(path, note={"figures": [1.0, value]})
    refused(path, kind, rf"is not valid JSON: note\.figures\.1 is {value}")


def test_a_number_too_large_for_any_computer(path, kind):
    path.write_text(path.read_text().replace("{", '{"note": 1e999,', 1))
    refused(path, kind, "note is inf")
    path.write_text(path.read_text().replace("1e999", "9" * 5000))
    refused(path, kind, "is not valid JSON: .*digits")


@pytest.mark.parametrize("content", [b"[]", b"null", b"7", b"\xff\xfe", b"{}"])
def test_something_else(path, kind, content):
    path.write_bytes(content)
    refused(path, kind, "is not (valid JSON|a valid)")


@pytest.mark.parametrize("depth", [150, 300, 600, 900, 980, 100_000])
def test_nested_deeply(path, kind, depth):
    path.write_text(path.read_text().replace("{", '{"note": ' + "[" * depth + "]" * depth + ",", 1))
    refused(path, kind, "recursion|nested too deeply|note: Extra inputs")


def test_a_folder_in_place_of_the_file(path, kind):
    path.unlink()
    path.mkdir()
    refused(path, kind, "cannot be read: Is a directory")


@pytest.mark.parametrize("kind", ["accuracy", "performance", "distribution"], indirect=True)
def test_protocol_and_hash_belong_together(path, kind):
    edit(path, protocol_hash="0" * 64)
    refused(path, kind, "protocol_hash is not the hash of 'protocol': the file was edited")


@pytest.mark.parametrize("size", [-1, "160421888", True, 1.5, 2**63, None])
def test_a_size_that_is_no_count(path, kind, size):
    document = json.loads(path.read_text())
    document["base" if kind in ("compression", "comparison") else "model"]["size_bytes"] = size
    path.write_text(json.dumps(document))
    refused(path, kind, r"(base|model)\.size_bytes: ")


@pytest.mark.parametrize("kind", ["distribution"], indirect=True)
def test_a_distribution_without_a_row(path, kind):
    document = json.loads(path.read_text())
    document["documents"][2]["top_logprobs"].pop()
    path.write_text(json.dumps(document))
    refused(path, kind, "document '2' has not 39 rows of 5 tokens")


# Profiles


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: .nan", "seed: nan is no number"),
        ("seed: 1e999", "seed"),
        ("performance: {seconds: .inf}", r"performance\.seconds: inf is no number"),
        ("seed: '5'", "seed: Input should be a valid integer .*'5'"),
        ("seed: true", "seed: Input should be a valid integer .*True"),
        ("seed: 99999999999999999999", "seed: 9+ is no number"),
        ("description: 2026-01-31", "description: date: put quotes around it"),
        ("description: 2026-13-41", "is not readable as YAML: .*month"),
        ("description: !!binary aGk=", "description: bytes"),
        ("accuracy: {1: 2}", "accuracy: the key 1 is not text"),
        ("accuracy: &a {packaged: *a}", "more values than any profile has"),
        ("seed: " + "[" * 3000 + "]" * 3000, "not readable as YAML"),
        ("seed: !!int x", "is not readable as YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("extends: nobody", "Unknown profile 'nobody'"),
        ("extends: " + "x" * 5000, "Unknown profile"),
        ('description: "\\ud800"', "description: not Unicode text"),
    ],
)
def test_profile(tmp_path, text, reason):
    path = tmp_path / "bad.yaml"
    path.write_text(text if text.startswith("extends") else f"extends: ci\n{text}\n")
    with pytest.raises(FlowError, match=reason) as caught:
        load_profile(str(path))
    assert "bad.yaml" in caught.value.problem or "extends" in text


def test_aliases_that_stand_for_billions_of_values(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = ["extends: ci", "accuracy: &a0 [x, x]"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))
    with pytest.raises(FlowError, match="more values than any profile has"):
        load_profile(str(path))


def test_a_profile_that_is_no_text(tmp_path):
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(FlowError, match=r"bytes\.yaml cannot be read"):
        load_profile(str(path))


def test_values_of_the_command_line_and_the_environment_are_named(monkeypatch):
    with pytest.raises(FlowError, match="--set 'seed=2026-13-41' is not readable"):
        parse_set(["seed=2026-13-41"])
    monkeypatch.setenv("MODEL_SERVE_FLOW__SEED", "[")
    with pytest.raises(FlowError, match="MODEL_SERVE_FLOW__SEED is not readable"):
        environment_overrides()
