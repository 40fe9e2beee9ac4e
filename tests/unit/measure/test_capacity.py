"""From GuideLLM's goodput search to a capacity with its interval;
its real output is read in tests/contract.
"""

import json

import factories
import pytest

from model_serve_flow.compare.speed import cost, cost_interval, cost_per_million_output_tokens
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Objectives
from model_serve_flow.flow.results.measured import Probe
from model_serve_flow.measure.capacity import measure_capacity, pooled, read_capacity
from model_serve_flow.measure.guidellm.commands import search_command
from model_serve_flow.measure.guidellm.generator import GeneratorFailed, NoRequestCompleted
from model_serve_flow.report.formatting import capacity_interval, capacity_sentence, capacity_text
from model_serve_flow.serve.endpoint import Endpoint

OBJECTIVES = Objectives(
    ttft_ms=1000, itl_ms=50, attainment=0.9, seconds=20, initial_streams=8, max_streams=64
)
PASSES = (1.0, 0.95, 1.0)  # attainment and its Wilson interval: settled, and not
LIKELY_PASSES = (0.92, 0.81, 0.97)
LIKELY_FAILS = (0.86, 0.74, 0.93)
FAILS = (0.2, 0.1, 0.35)


def probe(streams, attainment, lower, upper):
    return {
        "streams": streams,
        "attainment": attainment,
        "attainment_lower": lower,
        "attainment_upper": upper,
        "determined_requests": 80,
        "goodput": 3.1,
        "passed": attainment >= OBJECTIVES.attainment,
        "resolved": lower >= OBJECTIVES.attainment or upper < OBJECTIVES.attainment,
        "aborted": False,
    }


def search_report(probes, stopped="converged", loads=None):
    """What GuideLLM writes of a search; throughput is 20 tokens/s per stream."""
    passed = [streams for streams, result in probes if result[0] >= OBJECTIVES.attainment]
    benchmarks = [
        {
            "config": {"strategy": {"streams": streams}},
            "metrics": {"output_tokens_per_second": {"total": {"mean": 20.0 * streams}}},
        }
        for streams in loads or [streams for streams, _ in probes]
    ]
    conclusion = {
        "probes": [probe(streams, *result) for streams, result in probes],
        "best_passing_streams": max(passed, default=None),
        "lowest_failing_streams": min({s for s, _ in probes} - set(passed), default=None),
        "stop_reason": stopped,
    }
    return {"benchmarks": benchmarks, "conclusions": [conclusion]}


@pytest.fixture
def searched(tmp_path):
    def write(probes, stopped="converged", loads=None):
        path = tmp_path / "goodput.json"
        path.write_text(json.dumps(search_report(probes, stopped, loads)))
        return path

    return write


def test_a_search_tells_the_load_that_passed_and_the_next_that_failed(searched):
    path = searched(
        [(8, PASSES), (16, LIKELY_PASSES), (32, FAILS), (24, FAILS), (20, LIKELY_FAILS)]
    )
    capacity = read_capacity(path, OBJECTIVES)
    assert (capacity.streams, capacity.failed, capacity.ci95) == (16, 20, None)
    assert capacity.output_tokens_per_s == 320.0
    assert [one.streams for one in capacity.probes] == [8, 16, 32, 24, 20]
    assert capacity.probes[1].ci95 == (0.81, 0.97) and capacity.probes[1].passed


def test_a_machine_that_cannot_keep_the_objectives_at_all_is_a_result(searched):
    path = searched([(8, FAILS), (4, FAILS), (2, FAILS), (1, FAILS)], "objectives_unmet_at_minimum")
    capacity = read_capacity(path, OBJECTIVES)
    assert (capacity.streams, capacity.failed) == (0, 1)
    assert capacity.output_tokens_per_s == 0.0
    sentence = capacity_sentence(capacity)
    assert "No load was found" in sentence and "1 failed; one search gives no interval" in sentence


def test_without_a_load_that_surely_failed_there_is_no_upper_end(searched):
    capacity = read_capacity(
        searched([(32, PASSES), (64, PASSES)], "max_streams_reached"), OBJECTIVES
    )
    assert (capacity.streams, capacity.failed) == (64, None)
    assert "no load failed" in capacity_sentence(capacity)


def test_the_sentence_gives_the_promise_the_capacity_and_its_interval(searched):
    path = searched([(8, PASSES), (16, LIKELY_PASSES), (32, FAILS)])
    sentence = capacity_sentence(read_capacity(path, OBJECTIVES))
    assert "Up to 16 requests at once" in sentence and "90 % of the requests" in sentence
    assert "32 failed; one search gives no interval; the search ended: converged" in sentence


def test_a_file_without_a_search_is_an_error(searched, tmp_path):
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"benchmarks": [], "conclusions": []}))
    with pytest.raises(FlowError, match=r"loads\.json is not a goodput search"):
        read_capacity(path, OBJECTIVES)


def test_probes_that_are_not_the_loads_in_the_file_are_an_error(searched):
    with pytest.raises(FlowError, match="a load of 9 streams stands where the search says 16"):
        read_capacity(searched([(8, PASSES), (16, FAILS)], loads=[8, 9]), OBJECTIVES)


@pytest.fixture
def search(searched, tmp_path):
    """Measures with a GuideLLM that gives up where it is asked for more than `answered` requests at
    once.
    """

    def run(answered, seconds=20.0, failure=NoRequestCompleted):
        asked = []

        class Generator:
            run = staticmethod(lambda server, command, output: answer(command, output))

        def answer(command, output):
            profile = json.loads(command[command.index("--profile") + 1])
            asked.append((profile["initial_streams"], profile["max_streams"]))
            if profile["max_streams"] > answered:
                raise failure("GuideLLM ended with exit code 1.", log)
            output.parent.mkdir(parents=True, exist_ok=True)
            searched([(profile["max_streams"], PASSES)], "max_streams_reached").rename(output)

        (log := tmp_path / "guidellm.log").touch()
        slo = OBJECTIVES.model_dump() | {"seconds": seconds}
        flow = Flow.open(
            "cpu-smollm2", {"performance.slo": slo, "performance.output_tokens": 32}, tmp_path
        )
        endpoint = Endpoint("http://127.0.0.1:1", "base", "a key", tmp_path)
        return lambda: measure_capacity(
            flow.config, endpoint, Generator(), tmp_path / "goodput.json"
        ), asked

    return run


@pytest.mark.parametrize(
    ("answered", "loads", "streams"),
    [(64, [(8, 64)], 64), (8, [(8, 64), (1, 8)], 8), (1, [(8, 64), (1, 8), (1, 1)], 1)],
)
def test_where_a_load_answers_nothing_the_search_starts_lower(search, answered, loads, streams):
    measure, asked = search(answered)
    assert measure().streams == streams
    assert asked == loads


def test_no_answer_even_to_one_request_leaves_the_capacity_unknown(search):
    measure, _ = search(0)
    capacity = measure()
    assert not capacity.measured and (capacity.streams, capacity.failed) == (None, None)
    sentence = capacity_sentence(capacity)
    assert sentence.startswith(
        "Not measured: no request was answered within 21 s, even one at a time."
    )
    assert (
        capacity_text(capacity) == "not measured"
        and capacity_interval(capacity) == capacity.stopped
    )
    assert cost(1.0, capacity) is None


def test_a_load_shorter_than_an_answer_within_the_objectives_says_what_to_raise(search):
    """1 s to the first token and 31 x 50 ms to the others are 2.55 s."""
    measure, _ = search(0, seconds=0.5)
    sentence = capacity_sentence(measure())
    assert "may take 2.55 s, so raise performance.slo.seconds" in sentence


def test_any_other_failure_of_guidellm_is_shown_at_once(search):
    measure, asked = search(0, failure=GeneratorFailed)
    with pytest.raises(GeneratorFailed, match="exit code 1"):
        measure()
    assert len(asked) == 1


def test_the_search_has_the_requests_and_the_warm_up_of_the_load_points():
    config = load_profile("cpu-smollm2")
    command = search_command(
        config, OBJECTIVES, "http://127.0.0.1:1", "base", "models/base", "out.json"
    )
    values = {
        key: json.loads(command[command.index(key) + 1])
        for key in ("--profile", "--metrics", "--constraint")
    }
    assert values["--profile"] == {
        "kind": "goodput",
        "target_attainment": 0.9,
        "initial_streams": 8,
        "max_streams": 64,
        "tolerance": 0.1,
        "warmup": {"value": config.performance.warmup_seconds},
    }
    assert values["--metrics"]["slo"] == {"ttft_ms": 1000, "tpot_ms": 50}
    assert values["--constraint"]["seconds"] == 20 + config.performance.warmup_seconds
    assert f'"prompt_tokens": {config.performance.prompt_tokens}' in " ".join(command)


def test_cost_of_a_million_tokens():
    """3.60 USD per hour are 0.001 USD per second; at 1,000 tokens/s a million takes 1,000 s."""
    assert cost_per_million_output_tokens(3.6, 1000) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="not above 0"):
        cost_per_million_output_tokens(3.6, 0)


# --- Several searches, each on a server started anew ---


def searched_thrice(*brackets):
    """Pooled searches of these (passed, failed) loads, at 20 tokens/s per stream."""
    return pooled([
        factories.capacity().model_copy(update={
            "streams": passed, "failed": failed, "output_tokens_per_s": 20.0 * passed, "ci95": None,
            "searches": 1,
            "probes": tuple(Probe(streams=load, requests=80, attainment=0.9, ci95=(0.8, 1.0),
                                  passed=load == passed,
                                  output_tokens_per_s=20.0 * load) for load in (passed,
                                                                                failed) if load),
        })
        for passed, failed in brackets
    ])  # fmt: skip


def test_several_searches_have_an_interval_and_their_cost_too():
    found = searched_thrice((16, 20), (20, 22), (18, 20))
    assert (found.streams, found.searches, len(found.probes)) == (18, 3, 6)
    low, high = found.ci95
    assert low <= 16 and high >= 22
    assert found.output_ci95[0] == pytest.approx(20 * 18.86, rel=0.3)
    cheap, dear = cost_interval(0.36, found)
    assert cheap < cost(0.36, found) < dear
    assert dear == pytest.approx(0.36e6 / 3600 / found.output_ci95[0])
    assert f"{low} to {high}, 3 searches" in capacity_sentence(found)


def test_an_open_search_leaves_the_interval_open():
    found = searched_thrice((16, 20), (64, None), (18, 20))
    assert found.ci95[1] is None and found.failed is None
    assert cost_interval(0.36, found)[0] == 0.0
    assert "or more, 3 searches" in capacity_sentence(found)


def test_a_server_that_meets_the_objectives_at_no_load_counts_as_below_one():
    found = searched_thrice((2, 3), (0, 1), (2, 3))
    assert (found.streams, found.ci95[0], cost(0.36, found)) == (0, 0, None)


def test_one_search_has_neither_interval_nor_one_of_its_cost():
    found = searched_thrice((16, 20))
    assert (found.ci95, cost_interval(0.36, found)) == (None, None)


def test_a_search_that_measured_nothing_leaves_the_capacity_unmeasured():
    unknown = factories.capacity().model_copy(
        update={"streams": None, "failed": None, "stopped": "no answer"}
    )
    assert not pooled([factories.capacity(), unknown]).measured
