"""Searches the capacity at SLO: the highest concurrency at which the latency objectives hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from model_serve_flow.compare.speed import output_bracket
from model_serve_flow.compare.stats.capacity import bracket_interval
from model_serve_flow.flow.profile import FlowConfig, Objectives
from model_serve_flow.flow.results.measured import Capacity, Probe
from model_serve_flow.measure.guidellm.commands import search_command
from model_serve_flow.measure.guidellm.generator import LoadGenerator, NoRequestCompleted
from model_serve_flow.measure.guidellm.report import SearchedLoad, SearchedProbe, SearchReport
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.files import read_document


def measure_capacity(
    config: FlowConfig, endpoint: Endpoint, generator: LoadGenerator, path: Path
) -> Capacity | None:
    """Searches an endpoint's capacity at SLO with GuideLLM.

    Every request that completes after the warm-up counts.

    GuideLLM doubles the concurrency until too many requests miss an objective. Then it halves the
    gap between the highest concurrency that passed and the lowest that failed. A failed request
    counts as missed. A request that the end of a load cut off does not count.

    GuideLLM gives up at a load in which no request completes. The search is then repeated from 1 up
    to `initial_streams`, and at last at 1 alone. A lower bound (`stopped`: max_streams_reached) is
    a result.

    Args:
        config: the profile. `performance.slo` has the objectives.
        endpoint: the served model.
        generator: a running GuideLLM.
        path: the JSON file that GuideLLM writes.

    Returns:
        None if the profile has no objectives. If `streams` (a concurrency) is 0, the objectives do
        not hold even for one request at a time. If `streams` is None, no load completed a request
        and the capacity is unknown.

    Raises:
        FlowError: GuideLLM failed, or its file is not a goodput search.
        ServerGone: the server ended during the search.
    """
    objectives = config.performance.slo
    if objectives is None:
        return None
    ladder = (
        (objectives.initial_streams, objectives.max_streams),
        (1, objectives.initial_streams),
        (1, 1),
    )
    for initial, highest in dict.fromkeys(ladder):
        loads = objectives.model_copy(update={"initial_streams": initial, "max_streams": highest})
        if (capacity := _search(config, endpoint, generator, loads, path)) is not None:
            return capacity
    return _capacity(objectives, (), None, _unanswered(config, objectives))


def _search(
    config: FlowConfig,
    endpoint: Endpoint,
    generator: LoadGenerator,
    objectives: Objectives,
    path: Path,
) -> Capacity | None:
    """Runs one goodput search; returns None if GuideLLM gave up because no request completed."""
    where = (endpoint.url, endpoint.model_name, str(endpoint.folder), str(path))
    command = search_command(config, objectives, *where)
    try:
        generator.run(endpoint, command, path)
    except NoRequestCompleted:
        return None
    return read_capacity(path, objectives)


def _unanswered(config: FlowConfig, objectives: Objectives) -> str:
    """Explains why the capacity is unknown.

    If a load is shorter than the slowest answer within the objectives, the text says so.
    """
    load = config.performance
    slowest = (objectives.ttft_ms + (load.output_tokens - 1) * objectives.itl_ms) / 1000
    seconds = objectives.seconds + load.warmup_seconds
    found = f"no request was answered within {seconds:g} s, even one at a time"
    if seconds >= slowest:
        return found
    return (
        f"{found}; an answer within the objectives may take {slowest:g} s, so raise "
        "performance.slo.seconds"
    )


def read_capacity(path: Path, objectives: Objectives) -> Capacity:
    """Reads the capacity from GuideLLM's JSON output.

    Raises:
        FlowError: the file is not the output of a goodput search.
    """
    report = read_document(
        path,
        SearchReport,
        "a goodput search of GuideLLM 0.8",
        "It was edited, or written by another version",
    )
    (search,) = report.conclusions
    probes = tuple(_probe(*pair) for pair in zip(search.probes, report.benchmarks, strict=True))
    return _capacity(objectives, probes, search.best_passing_streams or 0, search.stop_reason)


def _probe(probe: SearchedProbe, load: SearchedLoad) -> Probe:
    return Probe(
        streams=probe.streams,
        requests=probe.determined_requests,
        attainment=probe.attainment,
        ci95=(probe.attainment_lower, probe.attainment_upper),
        passed=probe.passed,
        output_tokens_per_s=load.metrics.output_tokens_per_second.total.mean,
    )


def _capacity(
    objectives: Objectives, probes: tuple[Probe, ...], streams: int | None, stopped: str
) -> Capacity:
    """Builds the capacity of one search; `failed` is the lowest failed concurrency above it."""
    above = [
        probe.streams for probe in probes if not probe.passed and probe.streams > (streams or 0)
    ]
    return Capacity(
        ttft_ms=objectives.ttft_ms,
        itl_ms=objectives.itl_ms,
        attainment=objectives.attainment,
        streams=streams,
        failed=min(above, default=None),
        output_tokens_per_s=next(
            (probe.output_tokens_per_s for probe in probes if probe.streams == streams), 0.0
        ),
        probes=probes,
        stopped=stopped,
    )


def pooled(searches: Sequence[Capacity]) -> Capacity:
    """Combines several searches into one capacity with its 95 % interval.

    Each search ran on a newly started server. The figures are geometric means. If one search
    measured nothing, the result is not measured either.

    Args:
        searches: at least one.

    Raises:
        ValueError: there is no search.
    """
    first, *others = searches
    if not others:
        return first
    if (lacking := next((search for search in searches if not search.measured), None)) is not None:
        return lacking
    means = {
        key: _mean([getattr(s, key) for s in searches])
        for key in ("streams", "output_tokens_per_s")
    }
    passed = [s.streams for s in searches if s.streams is not None]  # all: each is measured
    failed = [s.failed for s in searches if s.failed is not None]
    streams = bracket_interval(passed, [s.failed for s in searches])
    assert streams is not None  # two searches or more
    ends = [output_bracket(search) for search in searches]
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    output = bracket_interval(lows, highs) if min(lows) > 0 else None
    return first.model_copy(
        update={
            "streams": round(means["streams"]),
            "failed": max(failed) if len(failed) == len(searches) else None,
            "output_tokens_per_s": means["output_tokens_per_s"],
            "probes": tuple(probe for search in searches for probe in search.probes),
            "stopped": "; ".join(dict.fromkeys(search.stopped for search in searches)),
            "searches": len(searches),
            "ci95": _whole(streams),
            "output_ci95": output,
        }
    )


def _mean(values: Sequence[float]) -> float:
    """Computes the geometric mean; 0 if a value is 0."""
    return math.exp(fmean(map(math.log, values))) if min(values) > 0 else 0.0


def _whole(interval: tuple[float, float | None]) -> tuple[int, int | None]:
    """Rounds an interval outwards to whole requests."""
    low, high = interval
    return math.floor(low), None if high is None else math.ceil(high)
