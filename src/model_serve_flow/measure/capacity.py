"""Capacity at SLO: the highest concurrency at which the latency objectives hold,
and what a token costs there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from model_serve_flow.compare.speed import output_bracket
from model_serve_flow.compare.stats.capacity import bracket_interval
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Objectives
from model_serve_flow.flow.results.measured import Capacity, Probe
from model_serve_flow.measure.guidellm.commands import search_command
from model_serve_flow.measure.guidellm.generator import LoadGenerator
from model_serve_flow.measure.guidellm.report import SearchedLoad, SearchedProbe, SearchReport
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import read_document

# What GuideLLM says, and ends without a result, when the end of a load cut off every request of it.
NO_REQUEST_COMPLETED = "No request produced a determined verdict"


def measure_capacity(
    flow: Flow, server: Server, generator: LoadGenerator, name: str = "goodput"
) -> Capacity | None:
    """Searches the server's capacity with GuideLLM and leaves GuideLLM's file (`raw/<name>.json`).

    Every request that completes after the warm-up counts.

    GuideLLM doubles the concurrency until too many requests miss an objective, then halves the gap
    between the highest load that passed and the lowest that failed. A request that failed counts as
    missed; one that the end of a load cut off does not count. GuideLLM gives up at a load that
    answers no request at all. The search is then made once more from 1 up to `initial_streams`, and
    at last at 1 alone: a lower bound (`stopped`: max_streams_reached) is a result.

    Returns:
        None if the profile has no objectives. `streams` 0 is a result: the objectives do not hold
        at any load. With `streams` None no load answered a request: nothing is known.

    Raises:
        FlowError: GuideLLM failed, or it wrote something else than a search.
        ServerGone: the server ended meanwhile.
    """
    objectives = flow.config.performance.slo
    if objectives is None:
        return None
    ladder = (
        (objectives.initial_streams, objectives.max_streams),
        (1, objectives.initial_streams),
        (1, 1),
    )
    for initial, highest in dict.fromkeys(ladder):
        loads = objectives.model_copy(update={"initial_streams": initial, "max_streams": highest})
        if (capacity := _search(flow, server, generator, loads, name)) is not None:
            return capacity
    return _capacity(objectives, (), None, _unanswered(flow, objectives))


def _search(
    flow: Flow, server: Server, generator: LoadGenerator, objectives: Objectives, name: str
) -> Capacity | None:
    """One goodput search; None if GuideLLM gave up because a load answered no request."""
    path = flow.workspace.raw(server.model_name) / f"{name}.json"
    command = search_command(
        flow.config, objectives, server.url, server.model_name, str(server.folder), str(path)
    )
    try:
        generator.run(server, command, path)
    except FlowError as error:
        if NO_REQUEST_COMPLETED in error.problem:
            return None
        raise
    return read_capacity(path, objectives)


def _unanswered(flow: Flow, objectives: Objectives) -> str:
    """Why nothing is known: also where a load is shorter than the slowest answer within the
    objectives.
    """
    load = flow.config.performance
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
    """The capacity in GuideLLM's JSON output; FlowError if it is not that of a goodput search."""
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
    """Of one search. The next higher load that failed is the other end of what it tells."""
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
    """Several searches, each on a server started anew, as one capacity with its interval.

    The figures are geometric means. A search that measured nothing leaves the whole unmeasured.

    Raises:
        ValueError: no search.
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
    """Geometric; 0 where a value is 0."""
    return math.exp(fmean(map(math.log, values))) if min(values) > 0 else 0.0


def _whole(interval: tuple[float, float | None]) -> tuple[int, int | None]:
    """Rounded outwards to whole requests."""
    low, high = interval
    return math.floor(low), None if high is None else math.ceil(high)
