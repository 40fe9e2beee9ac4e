"""The case study drops rungs with wrong tokens and rungs that are not faster, and keeps others."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.benchmarks import FOLDER, benchmark
from support.lessons import lesson
from support.serving_server import running

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import Latency, LoadPoint
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.launch import serve

case = lesson("11_Case_Study")
servers = sys.modules["servers"]


def rung(*speeds, **changes):
    latency = Latency(mean=1, p50=1, p95=1, p99=1)
    points = [
        LoadPoint(
            concurrency=8,
            seconds=4,
            completed_requests=8,
            errored_requests=0,
            incomplete_requests=0,
            prompt_tokens=128,
            output_tokens=32,
            requests_per_s=speed / 32,
            output_tokens_per_s=speed,
            ttft_ms=latency,
            itl_ms=latency,
            request_latency_s=latency,
            client_cpu_share=0.1,
            valid=True,
        )
        for speed in speeds
    ]
    return case.Rung(**{"name": "changed", "options": {}, "points": tuple(points), **changes})


KEPT = rung(100, 102, 101, name="kept")


@pytest.mark.parametrize(
    ("speeds", "decision"),
    [
        ((150, 152, 149), "kept"),
        ((60, 61, 59), "dropped: slower"),
        ((99, 104, 101), "dropped: no difference shown"),
        ((300, 40, 160), "dropped: no difference shown"),
    ],
)
def test_a_rung_is_kept_only_if_it_is_faster_beyond_chance(speeds, decision):
    assert case.decide(KEPT, rung(*speeds)).startswith(decision)


def test_one_turn_has_no_interval_and_keeps_nothing():
    assert case.decide(rung(100), rung(500)).startswith("dropped: no difference shown")


def test_a_rung_with_failed_requests_is_dropped():
    [point] = rung(500).points
    bad = point.model_copy(update={"valid": False, "invalid_reason": "3 of 8 requests failed"})
    found = case.decide(KEPT, rung(points=(bad,)))
    assert found == "dropped: not measured (3 of 8 requests failed)"


def test_wrong_tokens_are_dropped_at_any_speed():
    found = case.decide(KEPT, rung(900, 901, 902, wrong="'Water boils at': token 3 is 7"))
    assert found.startswith("dropped: wrong tokens ('Water boils at'")


@pytest.fixture
def damaged(tiny_model, tmp_path):
    """The model with one matrix doubled."""
    folder = shutil.copytree(tiny_model, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def problem_of(gate, folder, log):
    with running(folder, log, "--length", "1024") as server:
        return gate.problem(Endpoint(server.url, "tiny", "", Path(folder)))


def test_the_gate_passes_the_same_weights_and_names_the_first_wrong_token(
    tiny_model, damaged, tmp_path
):
    gate = case.Gate(tiny_model)
    assert problem_of(gate, tiny_model, tmp_path / "log") == ""
    assert "nats likelier" in problem_of(gate, damaged, tmp_path / "log2")


def test_the_gate_lets_rounding_pass_and_nothing_else(tiny_model):
    gate = case.Gate(tiny_model)
    expected = gate.answers[0]
    logits = gate._logits(gate.prompts[0])
    first, second = torch.topk(logits, 2).indices.tolist()
    assert first == expected[0]
    other = [second, *expected[1:]]
    gap = float(logits[first] - logits[second])
    assert (gate.difference(0, other) == "") == (gap <= case.CLOSE)
    far = [int(logits.argmin()), *expected[1:]]
    assert gate.difference(0, far).startswith("token 1 is")
    assert gate.difference(0, expected[:-1]) == "15 tokens instead of 16"


@pytest.fixture
def flow(tiny_model, tmp_path):
    """The profile `ci` with the random tiny model as its base, and a candidate that was made."""
    flow = Flow.open("ci", {}, tmp_path)
    for folder in ("data", "models"):
        (flow.workspace.root / folder).mkdir(parents=True)
    made = flow.candidates[0].name
    for name in ("base", made):
        flow.workspace.model(name).symlink_to(tiny_model)
    return flow


def test_a_change_that_cannot_be_served_is_dropped_and_the_ladder_goes_on(flow):
    ladder = case.Ladder(case.case_flow(flow, concurrency=[8]), None, None, turns=2)
    ladder.rungs = [rung(100, 101, options={"cache": "none"}, decision="start")]
    ladder.climb("chunks", strategy="chunked", length="1024")
    assert ladder.rungs[-1].decision.startswith("dropped: not served (")
    assert "Take a cache" in ladder.rungs[-1].decision
    assert ladder.kept.decision == "start"


def test_a_ladder_does_not_start_from_a_server_that_fails(flow):
    ladder = case.Ladder(case.case_flow(flow, concurrency=[8]), None, None, turns=2)
    with pytest.raises(FlowError, match="cannot start from 'start': not served"):
        ladder.start("start", strategy="chunked", cache="none")


def test_the_other_servers_are_measured_without_becoming_rungs(flow, monkeypatch):
    llama, transformers, candidate, vllm = case.yardsticks(flow, 8)
    assert (llama.weights, candidate.weights, vllm.weights) == ("Q4_1", "W8A8", case.SAME)
    assert transformers.weights == case.SAME and candidate.model == flow.candidates[0].name
    ladder = case.Ladder(case.case_flow(flow, concurrency=[8]), None, None, turns=2)
    monkeypatch.setattr(ladder, "measure", lambda found: replace(found, points=KEPT.points))
    ladder.start("start", cache="none")
    ladder.yardstick(llama)
    ladder.yardstick(replace(transformers, wrong="'Water boils at': token 3 is 7"))
    assert ladder.kept.name == "start"
    table = case.ladder_table(ladder.rungs)
    assert table["decision"].tolist() == ["start", "yardstick", "yardstick: wrong tokens"]
    assert table["weights"].tolist() == [case.SAME, "Q4_1", case.SAME]


def test_transformers_server_gives_its_tokens_at_full_length(flow, tiny_model, tokenizer):
    gate = case.Gate(tiny_model)
    asked = {"model": "base", "prompt": case.PROMPTS[0], "max_tokens": 16, "temperature": 0}
    with serve(case.rung_flow(flow, servers.transformers(places=2)), "base") as server:
        with server.client() as client:
            reply = client.post("/v1/completions", json={**asked, "ignore_eos": True}).json()
            assert client.post("/v1/completions", json={**asked, "model": "x"}).is_client_error
        assert server.facts().version.startswith("5.")
    assert reply["choices"][0]["text"] == tokenizer.decode(gate.answers[0])
    assert reply["usage"]["completion_tokens"] == 16


def test_the_benchmark_measures_both_sides_in_turns(tiny_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    bench = benchmark("bench_serving")
    models = tmp_path / "models"
    models.mkdir()
    (models / "base").symlink_to(tiny_model)
    monkeypatch.setattr(sys.modules["serving_load"], "IDS", range(5, 500))
    cache = next(one for one in bench.COMPARISONS if one.name.startswith("KV cache, 1 request"))
    short = "--length=1024"
    cache = replace(cache, technique=(*cache.technique, short), against=(*cache.against, short))
    [found] = bench.compare(SimpleNamespace(workspace=Workspace(tmp_path)), cache, turns=2)
    assert found.lowest <= found.ratio <= found.highest
    assert found.met == (found.ratio >= 2)
    assert bench.line(found).endswith("met" if found.met else "missed")
