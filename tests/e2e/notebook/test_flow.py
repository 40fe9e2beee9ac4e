"""What the finished `ci` run must show. Nothing here depends on speed."""

import json
import math
from pathlib import Path
from statistics import mean, variance

import nbformat
import pytest
from conftest import ARTIFACTS, run_flow
from support.profiles import HAS_INT4, INT4_MISSING, candidates
from support.score_test import assert_interval

from model_serve_flow.run.steps import STEPS
from model_serve_flow.system.files import read_json


def test_every_notebook_ran_to_its_end_without_an_error(flow):
    for step in STEPS:
        notebook = nbformat.read(flow.workspace.notebooks / f"{step.module}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code), step.module
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"], (
            step.module
        )


def test_w8a8_is_small_and_served_by_the_int8_kernel(flow):
    candidate = next(c for c in flow.workspace.comparison().candidates if c.name == "w8a8-int8")
    assert candidate.size_ratio <= 0.65
    assert "Int8" in candidate.kernel
    for kind in (flow.workspace.accuracy, flow.workspace.performance):
        assert any("Int8" in kernel for kernel in kind("w8a8-int8").engine.kernels)


needs_int4 = pytest.mark.skipif(not HAS_INT4, reason=INT4_MISSING)


@needs_int4
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
    for name in ("base", *candidates(flow)):
        tasks = flow.workspace.accuracy(name).tasks
        for task in ("mmlu_dev", "word_analogies"):
            items = tasks[task].items
            assert sum(i.values["acc"] for i in items) / len(items) == pytest.approx(
                tasks[task].metrics["acc"].value
            )
        texts = tasks["wikipedia"].items
        log_likelihood, words = (
            sum(i.values["loglikelihood"] for i in texts),
            sum(i.values["words"] for i in texts),
        )
        assert math.exp(-log_likelihood / words) == pytest.approx(
            tasks["wikipedia"].metrics["word_perplexity"].value
        )


def test_items_and_load_are_the_same_for_base_and_candidates(flow):
    base = flow.workspace.accuracy("base")
    for candidate in flow.candidates:
        other = flow.workspace.accuracy(candidate.name)
        made, planned = other.protocol["look"]
        assert planned == flow.config.verdict.looks == 2 and len(other.looks) == made
        for task, scored in base.tasks.items():
            asked = [item.id for item in other.tasks[task].items]
            assert [item.id for item in scored.items if item.id in set(asked)] == asked
            assert len(asked) == scored.n * made // planned
        points = flow.workspace.performance(candidate.name).points
        asked = flow.config.performance
        assert [p.concurrency for p in points] == list(asked.concurrency) * asked.repeats
        assert all(
            p.output_tokens == pytest.approx(flow.config.performance.output_tokens, rel=0.05)
            for p in points
        )


def test_calibration_used_the_chat_template_and_shares_no_item_with_the_tasks(flow):
    calibration = flow.workspace.compression(candidates(flow)[-1]).calibration
    assert calibration.chat_template
    assert calibration.samples == flow.config.calibration.samples
    assert calibration.overlap.items > 0 and not calibration.overlap.overlapping


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
            "suite",
            "kl",
            "top1_agreement",
            "noise_floor",
        } <= candidate.keys()
        assert {"mean", "p99", "ci95", "k"} <= candidate["kl"].keys()
        assert (
            candidate["verdict"] in ("SHIP", "DO NOT SHIP", "INCONCLUSIVE") and candidate["reasons"]
        )
        for metrics in candidate["accuracy"].values():
            for difference in metrics.values():
                assert {"n", "base", "candidate", "difference", "ci95", "unit"} <= difference.keys()
                assert {
                    "method",
                    "mcnemar_p",
                    "flips",
                    "smallest_detectable_drop",
                } <= difference.keys()
        for point in candidate["performance"]:
            assert {
                "concurrency",
                "speedup",
                "speedup_ci95",
                "ttft_ms_p95",
                "itl_ms_p95",
            } <= point.keys()


# rpact's bounds of O'Brien and Fleming for two equal looks, after each
BOUNDS = {1: 2.963, 2: 1.969}


def test_the_comparison_follows_from_the_items(flow):
    """Recomputed with other code than the project's, from results/*/accuracy.json alone."""
    from scipy.stats import binomtest

    for candidate in flow.workspace.comparison().candidates:
        for task in ("mmlu_dev", "word_analogies"):
            items = flow.workspace.accuracy(candidate.name).tasks[task].items
            z = BOUNDS[candidate.looks.made]
            base, other = (
                {
                    item.id: item.values["acc"]
                    for item in flow.workspace.accuracy(name).tasks[task].items
                }
                for name in ("base", candidate.name)
            )
            lost = sum(base[i] > other[i] for i in other)
            gained = sum(base[i] < other[i] for i in other)
            found = candidate.accuracy[task]["acc"]
            assert found.difference == pytest.approx(100 * (gained - lost) / len(other))
            if found.clusters is not None and found.clusters.decide:
                labels = {item.id: item.groups[found.clusters.key] for item in items}
                changes = {i: 100 * (other[i] - base[i]) for i in other}
                assert found.ci95 == pytest.approx(clustered_interval(changes, labels, z), abs=0.01)
            else:
                low, high = (bound / 100 for bound in found.ci95)
                assert_interval(low, high, gained, lost, len(other), z=z)
            assert (found.flips.right_to_wrong, found.flips.wrong_to_right) == (lost, gained)
            exact = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            assert found.mcnemar_p == pytest.approx(exact)


def clustered_interval(changes, labels, z):
    """Of the mean change at z, t over the clusters: each cluster is left out once."""
    from scipy.stats import norm, t

    clusters = sorted(set(labels.values()))
    left = [mean(change for i, change in changes.items() if labels[i] != out) for out in clusters]
    middle, count = mean(changes.values()), len(clusters)
    error = math.sqrt((count - 1) / count * sum((value - middle) ** 2 for value in left))
    sizes = [sum(label == cluster for label in labels.values()) for cluster in clusters]
    parts = [size * (1 + size / mean(sizes)) for size in sizes]
    degrees = sum(parts) ** 2 / sum(part**2 for part in parts) - 1
    reach = t.isf(norm.sf(z), degrees) * error
    return [middle - reach, middle + reach]


def test_the_speed_ups_follow_from_the_repeats(flow):
    """Welch's interval of the logarithms by its textbook formula,
    from results/*/performance.json alone.
    """
    for candidate in flow.workspace.comparison().candidates:
        points = [flow.workspace.performance(name).points for name in ("base", candidate.name)]
        for found in candidate.performance:
            logs = [
                [math.log(p.output_tokens_per_s) for p in of if p.concurrency == found.concurrency]
                for of in points
            ]
            (low, high), change = logarithms_interval(*logs), mean(logs[1]) - mean(logs[0])
            assert math.log(found.speedup) == pytest.approx(change)
            assert [math.log(bound) for bound in found.speedup_ci95] == pytest.approx([low, high])


def logarithms_interval(base, candidate):
    """Difference of the means, 95 %, for samples of unlike spread."""
    from scipy.stats import t

    parts = [variance(side) / len(side) for side in (base, candidate)]
    degrees = sum(parts) ** 2 / sum(
        p**2 / (len(s) - 1) for p, s in zip(parts, (base, candidate), strict=True)
    )
    reach = t.ppf(0.975, degrees) * math.sqrt(sum(parts))
    change = mean(candidate) - mean(base)
    return change - reach, change + reach


@needs_int4
def test_int8_is_nearer_to_the_base_than_4_bits_and_farther_than_the_noise(flow):
    int8, int4 = flow.workspace.comparison().candidates
    noise = int8.noise_floor
    assert noise.kl.mean <= int8.kl.mean < int4.kl.mean
    assert noise.top1_agreement >= int8.top1_agreement > int4.top1_agreement
    assert int4.verdict != "SHIP"


def test_capacity_was_searched_for_every_model_and_no_load_point_is_missing(flow):
    for name in ("base", *candidates(flow)):
        capacity = flow.workspace.performance(name).capacity
        assert 0 <= capacity.streams <= flow.config.performance.slo.max_streams
        passed = {probe.streams for probe in capacity.probes if probe.passed}
        assert capacity.streams == max(passed, default=0)
        assert capacity.failed is None or capacity.failed > capacity.streams


def test_every_candidate_has_a_model_card_with_its_results(flow):
    from huggingface_hub import ModelCard

    for candidate in flow.workspace.comparison().candidates:
        card = ModelCard.load(flow.workspace.model(candidate.name) / "README.md")
        assert candidate.verdict in card.text
        assert {result.metric_type for result in card.data.eval_results} >= {
            "acc",
            "word_perplexity",
        }


def test_the_ship_record_binds_the_verdicts_to_the_checkpoints(flow):
    from model_serve_flow.system.digests import folder_digest

    record = read_json(flow.workspace.report / "ship-record.json")
    assert record["overrides"] == []
    for candidate in record["candidates"]:
        assert candidate["sha256"] == folder_digest(flow.workspace.model(candidate["name"]))
        assert candidate["verdict"] in ("SHIP", "DO NOT SHIP", "INCONCLUSIVE")
    assert read_json(flow.workspace.deploy / "deployment.json")["ship"]["override"] is None


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
    assert {"servingruntime.yaml", "inferenceservice.yaml"} <= {
        path.name for path in flow.workspace.deploy.iterdir()
    }


def test_a_second_run_skips_every_step_and_says_so(flow):
    before = (flow.workspace.report / "comparison.json").read_bytes()
    outcome = run_flow()
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("skipped") >= len(STEPS), outcome.stdout
    assert (flow.workspace.report / "comparison.json").read_bytes() == before


def test_no_server_outlives_the_flow(flow):
    import psutil

    ours = str(ARTIFACTS)
    left = [
        p.info
        for p in psutil.process_iter(["pid", "cmdline"])
        if ours in " ".join(p.info["cmdline"] or [])
    ]
    assert not [p for p in left if "vllm" in " ".join(p["cmdline"])]


def test_results_hold_no_nan_and_no_half_written_file(flow):
    for path in flow.workspace.root.rglob("*.json"):
        json.loads(
            path.read_text(),
            parse_constant=lambda name, path=path: pytest.fail(f"{path} holds {name}"),
        )
    assert not list(flow.workspace.root.rglob("*.tmp"))


def test_a_gpu_profile_stops_at_00_with_a_clear_error(tmp_path):
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    outcome = run_flow(profile="gpu-llama-3.1-8b", artifacts=tmp_path)
    assert outcome.returncode == 1
    assert "00" in outcome.stdout + outcome.stderr and "GPU" in outcome.stderr + outcome.stdout
