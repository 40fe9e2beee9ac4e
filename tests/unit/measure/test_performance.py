"""From GuideLLM's JSON to load points; its real output is read in tests/contract and tests/e2e."""

import copy
import json

import pytest
from factories import performance

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.load_points import measure_load, read_load_points
from model_serve_flow.report.notebook_tables import capacity_table, load_table
from model_serve_flow.serve.endpoint import Endpoint

LOAD = {"concurrency": [1, 2], "repeats": 2, "min_requests": 5, "output_tokens": 16}
CONFIG = load_profile("ci", {f"performance.{key}": value for key, value in LOAD.items()})
IDLE = ClientCpu({1: [(0.0, 0.0), (1e9, 0.0)]})
PLACES = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr("model_serve_flow.measure.guidellm.client_cpu.usable_cores", lambda: 2)


def distribution(mean):
    return {
        "successful": {
            "mean": mean,
            "percentiles": {"p50": mean, "p95": 2 * mean, "p99": 3 * mean},
        },
        "total": {"mean": mean},
    }


def benchmark(streams, start=0.0):
    return {
        "config": {"strategy": {"streams": streams}},
        "start_time": start,
        "end_time": start + 8.0,
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


def two_rounds(last=None):
    return [benchmark(1, 0), benchmark(2, 10), benchmark(1, 20), last or benchmark(2, 30)]


def test_points_are_read_with_their_percentiles_and_repeats(written):
    points = read_load_points(written(*two_rounds()), CONFIG, IDLE, PLACES)
    assert [(point.concurrency, point.repeat) for point in points] == [
        (1, 1),
        (2, 1),
        (1, 2),
        (2, 2),
    ]
    assert (
        points[0].valid and points[0].ttft_ms.p95 == 200.0 and points[0].output_tokens_per_s == 20.0
    )


@pytest.mark.parametrize(
    ("places", "asked"), [(None, [(1, 1), (2, 1)]), ([(2, 1), (2, 3)], [(2, 1), (2, 3)])]
)
def test_any_endpoint_is_measured_at_the_places_asked_for(tmp_path, places, asked):
    """Without places every concurrency is measured once."""

    class Generator:
        def run(self, endpoint, command, output):
            streams = json.loads(command[command.index("--profile") + 1])["streams"]
            benchmarks = [benchmark(one, 10.0 * turn) for turn, one in enumerate(streams)]
            output.write_text(json.dumps({"benchmarks": benchmarks}))
            return IDLE

    endpoint = Endpoint("http://127.0.0.1:1", "anything", "a key", tmp_path)
    points = measure_load(CONFIG, endpoint, Generator(), tmp_path / "load.json", places)
    assert [(point.concurrency, point.repeat) for point in points] == asked
    assert all(point.valid and point.busy is not None for point in points)


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
    *good, point = read_load_points(written(*two_rounds(bad)), CONFIG, IDLE, PLACES)
    assert all(other.valid for other in good) and not point.valid and reason in point.invalid_reason


def test_other_token_counts_than_asked_for_make_a_point_invalid(written):
    bad = benchmark(2)
    bad["metrics"]["output_token_count"] = distribution(9.0)
    *_, point = read_load_points(written(*two_rounds(bad)), CONFIG, IDLE, PLACES)
    assert "9.0 output tokens per request" in point.invalid_reason


def test_a_point_without_first_tokens_is_invalid(written):
    bad = benchmark(2)
    bad["metrics"]["time_to_first_token_ms"] = distribution(0.0)
    *_, point = read_load_points(written(*two_rounds(bad)), CONFIG, IDLE, PLACES)
    assert "no time to first token" in point.invalid_reason


@pytest.mark.parametrize("streams", [[1, 2], [1, 1, 2, 2], [1, 2, 1, 2, 1, 2]])
def test_other_load_points_or_repeats_than_asked_for_are_an_error(written, streams):
    with pytest.raises(FlowError, match=r"was asked for \[1, 2, 1, 2\]") as error:
        read_load_points(written(*map(benchmark, streams)), CONFIG, IDLE, PLACES)
    assert str(streams) in str(error.value)


def test_another_format_is_an_error_that_names_the_file(written):
    with pytest.raises(FlowError, match=r"guidellm\.json is not an output of GuideLLM"):
        read_load_points(written({"metrics": {}}), CONFIG, IDLE, PLACES)


def test_every_point_carries_the_clients_share_of_its_own_window(written):
    """The second of four points is the one at which the client worked:
    4 CPU seconds in 8 s on 2 cores.
    """
    client = ClientCpu({7: [(-5.0, 0.0), (0.0, 0.0), (10.0, 0.0), (18.0, 4.0), (40.0, 4.0)]})
    points = read_load_points(written(*two_rounds()), CONFIG, client, PLACES)
    assert [point.client_cpu_share for point in points] == pytest.approx([0, 0.25, 0, 0])
    assert [point.client_limited for point in points] == [False, True, False, False]


def used(*seconds):
    """A client of processes that used these CPU seconds, evenly, in 10 s."""
    return ClientCpu({number: [(0.0, 0.0), (10.0, value)] for number, value in enumerate(seconds)})


def test_client_share_is_cpu_seconds_of_all_processes_over_wall_seconds_and_cores():
    client = ClientCpu(
        {1: [(0.0, 0.0), (10.0, 1.0), (20.0, 6.0)], 2: [(0.0, 0.0), (10.0, 1.0), (20.0, 6.0)]}
    )
    assert client.share(0, 10) == pytest.approx(0.1)
    assert client.share(10, 20) == pytest.approx(0.5)


def test_a_process_that_started_or_ended_within_the_window_counts_what_it_used():
    client = ClientCpu({1: [(0.0, 0.0), (10.0, 1.0)], 2: [(4.0, 0.0), (6.0, 0.8)]})
    assert sum(client.seconds(0, 10).values()) == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("client", "device", "limited"),
    [
        (used(0.5, 0.3), "cpu", False),  # what one worker takes of two cores: 4 %
        # no process is busy, but together they took 15 % of the server's CPU
        (used(1.5, 1.5), "cpu", True),
        (used(1.5, 1.5), "gpu", False),  # the server computes elsewhere
        (used(0.2, 8.5), "gpu", True),  # one event loop cannot use more than one core
    ],
)
def test_the_client_limits_where_a_process_is_full_or_the_server_loses_cpu(client, device, limited):
    assert client.limited(0, 10, device) is limited


def test_the_command_carries_one_turn_of_the_profiles_load():
    where = ("http://127.0.0.1:1", "base", "models/base", "out.json")
    command = " ".join(load_command(CONFIG, *where))
    assert (
        '"streams": [1, 2]' in command
        and '"output_tokens": 16' in command
        and "sweep" not in command
    )
    assert '"streams": [2]' in " ".join(load_command(CONFIG, *where, [2]))


def test_a_load_lasts_for_its_requests_but_not_for_ever():
    settings = {"seconds": 4, "warmup_seconds": 1, "min_requests": 7}
    ends = [load_profile("ci",
                         {f"performance.{k}": v for k,
                          v in {**settings, **more}.items()}) for more in (
        {}, {"max_seconds": 9})]  # fmt: skip
    constraints = [json.loads(line[line.index("--constraint") + 1]) for line in (
        load_command(config, "http://127.0.0.1:1", "base", "models/base",
                     "out.json") for config in ends)]  # fmt: skip
    assert constraints[0] == {
        "kind": "enough_requests", "requests": 7, "warmup_seconds": 1, "least_seconds": 5,
        "max_seconds": 41
    }  # fmt: skip
    assert constraints[1]["max_seconds"] == 10
    with pytest.raises(FlowError, match="max_seconds is 3, less than seconds, which is 4"):
        load_profile("ci", {"performance.seconds": 4, "performance.max_seconds": 3})


def test_the_table_has_one_row_for_all_repeats_of_a_point():
    base = performance()
    marked = base.points[0].model_copy(update={"client_cpu_share": 0.2, "client_limited": True})
    failed = base.points[1].model_copy(
        update={"valid": False, "invalid_reason": "2 requests failed"}
    )
    table = load_table(
        {"base": base.model_copy(update={"points": (marked, failed, *base.points[2:])})}
    )
    assert list(table.index) == [(1, "base"), (4, "base"), (8, "base")]
    speeds = [point.output_tokens_per_s for point in base.points if point.concurrency == 1]
    row = table.loc[1, "base"]
    assert row["repeats"] == 3 and row["output tokens/s"] == pytest.approx(sum(speeds) / 3, abs=0.1)
    assert row["lowest to highest"] == f"{min(speeds):.1f} to {max(speeds):.1f}"
    assert (row["client CPU"], row["client-limited"], row["measured"]) == ("20.0%", "yes", "yes")
    assert table.loc[4, "base"]["measured"] == "not measured: repeat 1: 2 requests failed"
    assert table.loc[4, "base"]["output tokens/s"] == ""
    assert (table.loc[8, "base"]["client-limited"], table.loc[8, "base"]["measured"]) == ("", "yes")


def test_the_capacity_table_shows_every_load_of_the_search_and_is_empty_without_one():
    base = performance()
    table = capacity_table({"base": base, "w8a8-int8": base.model_copy(update={"capacity": None})})
    assert list(table.index) == [("base", probe.streams) for probe in base.capacity.probes]
    assert capacity_table({"base": base.model_copy(update={"capacity": None})}).empty
