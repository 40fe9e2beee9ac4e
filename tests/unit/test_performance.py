"""From GuideLLM's JSON to load points; its real output is read in tests/contract and tests/e2e."""

import copy
import json
import subprocess
import sys

import pytest

from model_serve_flow.config import load_profile
from model_serve_flow.errors import FlowError
from model_serve_flow.performance import ClientCpu, guidellm_command, read_load_points

CONFIG = load_profile(
    "ci", {"performance.concurrency": [1, 2], "performance.min_requests": 5, "performance.output_tokens": 16}
)


def distribution(mean):
    return {
        "successful": {"mean": mean, "percentiles": {"p50": mean, "p95": 2 * mean, "p99": 3 * mean}},
        "total": {"mean": mean},
    }


def benchmark(streams):
    return {
        "config": {"strategy": {"streams": streams}},
        "duration": 8.0,
        "metrics": {
            "request_totals": {"successful": 10, "errored": 0, "incomplete": 1, "total": 11},
            "output_token_count": distribution(16.0),
            "prompt_token_count": distribution(64.0),
            "requests_per_second": distribution(1.25),
            "output_tokens_per_second": distribution(20.0),
            "time_to_first_token_ms": distribution(100.0),
            "inter_token_latency_ms": distribution(20.0),
            "request_latency": distribution(0.5),
        },
    }


@pytest.fixture
def written(tmp_path):
    def write(*benchmarks):
        path = tmp_path / "guidellm.json"
        path.write_text(json.dumps({"benchmarks": benchmarks}))
        return path

    return write


def test_points_are_read_with_their_percentiles(written):
    first, second = read_load_points(written(benchmark(1), benchmark(2)), CONFIG)
    assert (first.concurrency, second.concurrency) == (1, 2)
    assert first.valid and first.ttft_ms.p95 == 200.0 and first.output_tokens_per_s == 20.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"errored": 2}, "2 of 11 requests failed"),
        ({"successful": 4}, "4 requests completed"),
    ],
)
def test_a_point_that_must_not_be_compared_says_why(written, change, reason):
    bad = copy.deepcopy(benchmark(2))
    bad["metrics"]["request_totals"].update(change)
    _, point = read_load_points(written(benchmark(1), bad), CONFIG)
    assert not point.valid and reason in point.invalid_reason


def test_other_token_counts_than_asked_for_make_a_point_invalid(written):
    bad = benchmark(2)
    bad["metrics"]["output_token_count"] = distribution(9.0)
    _, point = read_load_points(written(benchmark(1), bad), CONFIG)
    assert "9.0 output tokens per request" in point.invalid_reason


def test_missing_load_points_are_an_error(written):
    with pytest.raises(FlowError, match=r"\[1\].*\[1, 2\]"):
        read_load_points(written(benchmark(1)), CONFIG)


def test_another_format_is_an_error_that_names_the_file(written):
    with pytest.raises(FlowError, match=r"guidellm\.json is not an output of GuideLLM"):
        read_load_points(written({"metrics": {}}), CONFIG)


def test_client_share_is_cpu_seconds_over_wall_seconds_and_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    record = ClientCpu(times=[0.0, 10.0, 20.0], cpu_seconds=[0.0, 2.0, 12.0])
    assert record.share(0, 10) == pytest.approx(0.1)
    assert record.share(10, 20) == pytest.approx(0.5)


def test_the_client_is_watched_to_its_end():
    burn = "import time; end = time.time() + 1.5\nwhile time.time() < end: pass"
    record = ClientCpu.watch(subprocess.Popen([sys.executable, "-c", burn]))
    assert record.cpu_seconds[-1] > 0.3


def test_the_command_carries_the_profiles_load():
    command = " ".join(guidellm_command(CONFIG, "http://127.0.0.1:1", "base", "models/base", "out.json"))
    assert '"streams": [1, 2]' in command and '"output_tokens": 16' in command and "sweep" not in command
