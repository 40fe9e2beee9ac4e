"""The real engine: our client of lm-eval gives the scores of stock `local-completions`,
for no more tokens.
"""

from pathlib import Path

import pytest
from conftest import ARTIFACTS
from support.benchmarks import benchmark
from support.profiles import CI

from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import prepare_evaluation
from model_serve_flow.serve.launch import serve
from model_serve_flow.setup import offline

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"
MIRRORED = (SHARED / "hub").is_dir()


BENCH = benchmark("bench_accuracy")
SUITES = {
    "packaged questions": (("mmlu_dev",), 14, None, 1 / 3),
    "packaged words": (("word_analogies",), 24, None, 1),
    "packaged texts": (("wikipedia",), 2, None, 1),
    "MMLU, 5-shot": (("mmlu_virology",), 6, 5, 1 / 6),
    "ARC": (("arc_easy", "arc_challenge"), 8, None, 1),
    "ARC, 5-shot": (("arc_easy",), 2, 5, 1),
    "HellaSwag": (("hellaswag",), 8, None, 1),
}


@pytest.fixture(scope="module")
def served():
    """One server for all; lm-eval's own tasks come from the mirror beside the checkout."""
    flow = Flow.open(CI, {}, ARTIFACTS)
    assert flow.workspace.model("base").is_dir(), "run the flow first: pytest tests/e2e/notebook"
    with pytest.MonkeyPatch.context() as patch:
        if MIRRORED:
            patch.setenv(offline.VARIABLE, str(SHARED / "hub"))
        for name, value in offline.variables().items():
            patch.setenv(name, value)
        with serve(
            flow, "base", purpose="accuracy", meanwhile=lambda: prepare_evaluation(flow)
        ) as server:
            yield flow, server


@pytest.mark.parametrize("name", SUITES)
def test_the_scores_are_those_of_local_completions_for_no_more_tokens(served, name):
    tasks, items, examples, most = SUITES[name]
    if not name.startswith("packaged") and not MIRRORED:
        pytest.skip(f"no mirror at {SHARED / 'hub'}")
    found = BENCH.compare(*served, BENCH.Suite(name, tasks, items, examples), twice=1)
    agreement = found["agreement"]
    # pytest -s
    print(name, found["tokens_ratio"], found["seconds_ratio"], found["ours"], agreement)
    assert agreement["within_noise"], agreement
    assert agreement["other_choices_beyond_noise"] == 0
    assert agreement["largest_difference_of_a_metric"] <= agreement["largest_noise_of_a_metric"]
    assert found["tokens_ratio"] <= most
