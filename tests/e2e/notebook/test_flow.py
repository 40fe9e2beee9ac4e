"""What the finished `ci` run must show. Nothing here depends on speed."""

import json
import math
from pathlib import Path

import nbformat
import pytest
from conftest import ARTIFACTS, run_flow

from model_serve_flow.runner import STEPS
from model_serve_flow.workspace import read_json


def test_every_notebook_ran_to_its_end_without_an_error(flow):
    for step in STEPS:
        notebook = nbformat.read(flow.workspace.notebooks / f"{step.module}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code), step.module
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"], step.module


def test_w8a8_is_small_and_served_by_the_int8_kernel(flow):
    candidate = next(c for c in flow.workspace.comparison().candidates if c.name == "w8a8-int8")
    assert candidate.size_ratio <= 0.65
    assert "Int8" in candidate.kernel
    for kind in (flow.workspace.accuracy, flow.workspace.performance):
        assert any("Int8" in kernel for kernel in kind("w8a8-int8").engine.kernels)


def test_w4a16_is_half_the_size_and_served_by_the_4_bit_kernel(flow):
    candidate = next(c for c in flow.workspace.comparison().candidates if c.name == "w4a16-int4")
    assert candidate.size_ratio <= 0.50
    assert "WNA16" in candidate.kernel


def test_the_base_was_served_unquantised(flow):
    assert flow.workspace.accuracy("base").engine.kernels == ()
    assert flow.workspace.performance("base").engine.quantization is None


def test_w8a8_accuracy_is_within_its_interval_of_the_base(flow):
    candidate = next(c for c in flow.workspace.comparison().candidates if c.name == "w8a8-int8")
    for task in ("mmlu_dev", "word_analogies"):
        difference = candidate.accuracy[task]["acc"]
        assert difference.ci95[0] <= difference.difference <= difference.ci95[1]
        assert difference.ci95[0] <= 0 <= difference.ci95[1] or difference.difference > 0, task


def test_perplexity_is_finite_and_w8a8_is_within_5_percent_of_the_base(flow):
    candidate = next(c for c in flow.workspace.comparison().candidates if c.name == "w8a8-int8")
    perplexity = candidate.accuracy["wikipedia"]["word_perplexity"]
    assert math.isfinite(perplexity.base) and perplexity.base > 1
    assert abs(perplexity.candidate / perplexity.base - 1) < 0.05


def test_one_task_is_clearly_above_chance(flow):
    analogies = flow.workspace.accuracy("base").tasks["word_analogies"]
    figure = analogies.metrics["acc"]
    assert figure.value - 1.96 * figure.stderr >= analogies.chance + 0.10


def test_every_accuracy_figure_follows_from_its_items(flow):
    for name in ("base", "w8a8-int8", "w4a16-int4"):
        tasks = flow.workspace.accuracy(name).tasks
        for task in ("mmlu_dev", "word_analogies"):
            items = tasks[task].items
            assert sum(i.value("acc") for i in items) / len(items) == pytest.approx(tasks[task].metrics["acc"].value)
        texts = tasks["wikipedia"].items
        log_likelihood, words = sum(i.value("loglikelihood") for i in texts), sum(i.value("words") for i in texts)
        assert math.exp(-log_likelihood / words) == pytest.approx(tasks["wikipedia"].metrics["word_perplexity"].value)


def test_items_and_load_are_the_same_for_base_and_candidates(flow):
    base = flow.workspace.accuracy("base")
    for candidate in flow.candidates:
        other = flow.workspace.accuracy(candidate.name)
        for task, scored in base.tasks.items():
            assert [item.id for item in scored.items] == [item.id for item in other.tasks[task].items]
        points = flow.workspace.performance(candidate.name).points
        assert [p.concurrency for p in points] == list(flow.config.performance.concurrency)
        assert all(p.output_tokens == pytest.approx(flow.config.performance.output_tokens, rel=0.05) for p in points)


def test_calibration_was_never_padded(flow):
    calibration = flow.workspace.compression("w4a16-int4").calibration
    assert calibration.padding_fraction == 0
    assert calibration.chat_template
    assert calibration.samples == flow.config.calibration.samples


def test_comparison_json_keeps_its_contract(flow):
    document = read_json(flow.workspace.report / "comparison.json")
    assert {"schema_version", "profile", "base", "candidates"} <= document.keys()
    for candidate in document["candidates"]:
        assert {
            "name",
            "scheme",
            "kernel",
            "size_bytes",
            "accuracy",
            "performance",
            "verdict",
            "reasons",
        } <= candidate.keys()
        assert candidate["verdict"] in ("SHIP", "DO NOT SHIP", "INCONCLUSIVE") and candidate["reasons"]
        for metrics in candidate["accuracy"].values():
            for difference in metrics.values():
                assert {"n", "base", "candidate", "difference", "ci95", "unit"} <= difference.keys()
        for point in candidate["performance"]:
            assert point["speedup"] == pytest.approx(
                point["candidate_output_tokens_per_s"] / point["base_output_tokens_per_s"]
            )
            assert {"concurrency", "ttft_ms_p95", "itl_ms_p95"} <= point.keys()


def test_manifest_has_what_is_needed_to_redo_the_run(flow):
    manifest = read_json(flow.workspace.manifest)
    assert {"versions", "hardware", "model", "steps", "seeds", "profile"} <= manifest.keys()
    assert all(manifest["steps"][step.module]["seconds"] > 0 for step in STEPS)
    assert manifest["model"]["sha256"] == flow.workspace.accuracy("base").model.sha256


def test_the_report_is_one_self_contained_file_with_the_verdicts(flow):
    html = (flow.workspace.report / "report.html").read_text()
    for candidate in flow.workspace.comparison().candidates:
        assert candidate.name in html and candidate.verdict in html
    assert "4-bit" in html, "the report must say that the base weights come from a 4-bit file"
    assert (flow.workspace.report / "report.md").is_file()


def test_deployment_was_checked_and_its_key_was_not_written(flow):
    record = read_json(flow.workspace.deploy / "deployment.json")
    assert record["checks"] and all(check["ok"] for check in record["checks"])
    assert {"servingruntime.yaml", "inferenceservice.yaml"} <= {path.name for path in flow.workspace.deploy.iterdir()}


def test_a_second_run_skips_every_step_and_says_so(flow):
    before = (flow.workspace.report / "comparison.json").read_bytes()
    outcome = run_flow()
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("skipped") >= len(STEPS), outcome.stdout
    assert (flow.workspace.report / "comparison.json").read_bytes() == before


def test_no_server_outlives_the_flow(flow):
    import psutil

    ours = str(ARTIFACTS)
    left = [p.info for p in psutil.process_iter(["pid", "cmdline"]) if ours in " ".join(p.info["cmdline"] or [])]
    assert not [p for p in left if "vllm" in " ".join(p["cmdline"])]


def test_results_hold_no_nan_and_no_half_written_file(flow):
    for path in flow.workspace.root.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name, path=path: pytest.fail(f"{path} holds {name}"))
    assert not list(flow.workspace.root.rglob("*.tmp"))


def test_a_gpu_profile_stops_at_00_with_a_clear_error(tmp_path):
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    outcome = run_flow(profile="gpu-llama-3.1-8b", artifacts=tmp_path)
    assert outcome.returncode == 1
    assert "00" in outcome.stdout + outcome.stderr and "GPU" in outcome.stderr + outcome.stdout
