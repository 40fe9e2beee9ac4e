"""Measures performance with GuideLLM at the same load points for every model."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.busy import disturbance, disturbed, less_disturbed, watch_machine
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import Capacity, Latency, LoadPoint, PerformanceResult
from model_serve_flow.measure.capacity import measure_capacity, pooled
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.generator import LoadGenerator
from model_serve_flow.measure.guidellm.report import Load, LoadReport, Spread, Totals
from model_serve_flow.measure.provenance import (
    earlier,
    proven_facts,
    provenance,
    require_arguments,
    say_kept,
)
from model_serve_flow.serve.server import Server
from model_serve_flow.serve.vllm import engine_arguments
from model_serve_flow.system import live
from model_serve_flow.system.files import read_document, write_json

# Largest relative difference between measured and requested output tokens of a valid load point.
OUTPUT_TOKENS_TOLERANCE = 0.05
# keys of the section that choose load points and do not change how a load point is measured
WHICH_LOADS = frozenset({"concurrency", "repeats", "slo"})

Place = tuple[int, int]  # (concurrency, turn of the measurement)


def measure_performance(flow: Flow, server: Server, generator: LoadGenerator) -> PerformanceResult:
    """Measures the profile's load points on one server, then the capacity at SLO.

    The function writes `performance.json` after every turn, so an interruption costs one turn.
    GuideLLM's own files are stored in `raw/`. Load points that an earlier run measured for the same
    model in the same way are kept. A load point that is not valid is measured once more. If it is
    still not valid, this is printed, and the next run measures it again.

    Args:
        flow: the profile and its workspace.
        server: the served model.
        generator: a running GuideLLM.

    Raises:
        FlowError: GuideLLM failed (the message shows its last lines), GuideLLM's output is not what
            was asked for, or the kernel does not fit the checkpoint.
        ServerGone: the server ended during the measurement.
    """
    work = PerformanceWork(flow, generator, "performance.json", blocks=1)
    work.use(server)
    return work.measure(1)


class PerformanceWork:
    """The performance measurement of one model: call `use` with a server, then `measure`.

    Args:
        flow: the profile and its workspace.
        generator: a running GuideLLM.
        file: name of the result's file in the model's folder of results.
        blocks: how many times the model's server is started anew.
    """

    def __init__(self, flow: Flow, generator: LoadGenerator, file: str, blocks: int) -> None:
        self.flow, self.generator, self.file, self.blocks = flow, generator, file, blocks
        self.points: dict[Place, LoadPoint] = {}
        self.searches: dict[int, Capacity] = {}  # block -> search
        self._server: Server | None = None
        self.kept: PerformanceResult | None = None  # a complete result of an earlier run
        self.seconds, self.peak_memory = 0.0, 0

    @property
    def server(self) -> Server:
        """Returns the server set by `use`."""
        assert self._server is not None
        return self._server

    def use(self, server: Server) -> None:
        """Sets the server for the next measurements; the first call keeps earlier measurements.

        Raises:
            FlowError: the kernel does not fit the checkpoint, or the server has other arguments.
        """
        facts = proven_facts(server)
        protocol = performance_protocol(self.flow.config, facts.version, self.blocks)
        require_arguments(server, protocol)
        first, self._server, self.started = self._server is None, server, time.monotonic()
        self.protocol = protocol
        self.destination = self.flow.workspace.results(server.model_name) / self.file
        found = earlier(self.destination, PerformanceResult, server, facts) if first else None
        if found is not None and found.protocol == protocol and not found.unmeasured():
            say_kept(self.destination)
            self.kept = found
        elif found is not None:
            self.take_over(found)

    def take_over(self, found: PerformanceResult) -> None:
        """Keeps and prints the earlier measurements whose protocol has not changed."""
        if _manner(found.protocol) != _manner(self.protocol):
            return
        wanted = set(self.places())
        places = {
            (point.concurrency, point.repeat): point for point in found.points if not point.problem
        }
        self.points = {
            place: point
            for place, point in places.items()
            if place in wanted and point.block == self.block(place[1])
        }
        if found.protocol["performance"]["slo"] == self.protocol["performance"]["slo"]:
            single = {} if found.capacity is None else {1: found.capacity}
            searches = single if self.blocks == 1 else found.searches
            self.searches = {block: search for block, search in searches.items() if search.measured}
        self.seconds, self.peak_memory = found.seconds, found.engine.peak_memory_bytes or 0
        print(
            f"kept: {len(self.points)} of {len(wanted)} loads of {self.server.model_name}, "
            "measured before"
        )

    def places(self) -> list[Place]:
        """Lists (concurrency, turn) of all measurements, turn by turn.

        Each turn measures every load point once, and there are `performance.repeats` turns. A
        machine may slow down or speed up during the measurement. In turns, this affects all load
        points equally.
        """
        load = self.flow.config.performance
        return [
            (concurrency, turn)
            for turn in range(1, load.repeats + 1)
            for concurrency in load.concurrency
        ]

    def block(self, turn: int) -> int:
        """Returns the block in which a turn is measured."""
        return 1 if self.blocks == 1 else self.flow.config.performance.block(turn)

    def lacks(self, block: int) -> bool:
        """Checks whether a measurement of this block is missing."""
        if self.kept is not None:
            return False
        loads = any(
            self.block(place[1]) == block and place not in self.points for place in self.places()
        )
        return loads or (
            self.flow.config.performance.slo is not None and block not in self.searches
        )

    def measure(self, block: int) -> PerformanceResult:
        """Measures the missing load points of a block, then its capacity.

        Load points are measured turn by turn. Invalid load points are measured once more.
        """
        if self.kept is not None:
            return self.kept
        places = [place for place in self.places() if self.block(place[1]) == block]
        for turn in sorted({turn for _, turn in places}):
            self.load(
                [place for place in places if place[1] == turn and place not in self.points],
                str(turn),
            )
        self.load([place for place in places if self.points[place].problem], "once-more")
        if self.blocks > 1:
            self.again_if_busy(places)
        for (concurrency, repeat), why in self.result().problems().items():
            if (concurrency, repeat) in places:
                print(f"{self.server.model_name}: load point {concurrency}, repeat {repeat}, is "
                      f"not measured: {why}. The next run measures it again.")  # fmt: skip
        if block not in self.searches:
            live.report(f"{self.server.model_name}: capacity search", 0, 0)
            name = "goodput" if self.blocks == 1 else f"block-{block}-goodput"
            search = measure_capacity(self.flow, self.server, self.generator, name)
            self.searches |= {} if search is None else {block: search}
        result = self.write()
        self.seconds += time.monotonic() - self.started
        return result

    def again_if_busy(self, places: list[Place]) -> None:
        """Repeats load points that other programs disturbed, and keeps the less disturbed one."""
        before = {
            place: self.points[place] for place in places if disturbed(self.points[place].busy)
        }
        taken = {place: point.busy for place, point in before.items() if point.busy is not None}
        if not before:
            return
        print(f"{self.server.model_name}: {disturbance(list(taken.values()))}. "
              f"{len(before)} loads are measured once more.")  # fmt: skip
        self.load(list(before), "undisturbed")
        for place, point in before.items():
            again = self.points[place]
            if again.problem or (
                again.busy is not None and less_disturbed(taken[place], again.busy)
            ):
                self.points[place] = point
        self.write()

    def load(self, places: list[Place], name: str) -> None:
        """Measures these load points one after the other, and writes the result so far."""
        if not places:
            return
        done, loads = len(self.points), len(self.places())
        live.report(f"{self.server.model_name}: load points", min(done, loads - 1), loads)
        config, server = self.flow.config, self.server
        name = (
            f"guidellm-{name}" if self.blocks == 1 else f"block-{self.block(places[0][1])}-{name}"
        )
        path = self.flow.workspace.raw(server.model_name) / f"{name}.json"
        where = (server.url, server.model_name, str(server.folder), str(path))
        with watch_machine() as watch:
            client = self.generator.run(
                server, load_command(config, *where, [load for load, _ in places]), path
            )
        points = read_load_points(path, config, client, places)
        for place, point in zip(places, points, strict=True):
            self.points[place] = point.model_copy(
                update={"busy": watch.result(), "block": self.block(place[1])}
            )
        # Read before the search: models share the load points, but not the loads of the search.
        self.peak_memory = max(self.peak_memory, proven_facts(server).peak_memory_bytes or 0)
        self.write()

    def result(self) -> PerformanceResult:
        """Builds the result so far."""
        facts = proven_facts(self.server).model_copy(
            update={"peak_memory_bytes": self.peak_memory or None}
        )
        source = provenance(self.server, facts, self.protocol, self.started - self.seconds)
        points = tuple(self.points[place] for place in self.places() if place in self.points)
        searches = dict(sorted(self.searches.items()))
        capacity = pooled(list(searches.values())) if len(searches) == self.blocks else None
        kept = searches if self.blocks > 1 else {}
        return PerformanceResult(**source, points=points, capacity=capacity, searches=kept)

    def write(self) -> PerformanceResult:
        """Writes the result so far and returns it."""
        result = self.result()
        write_json(self.destination, result)
        return result


def _manner(protocol: dict[str, Any]) -> dict[str, Any]:
    """Returns the protocol without the keys that choose load points."""
    load = {key: value for key, value in protocol["performance"].items() if key not in WHICH_LOADS}
    return {**protocol, "performance": load}


def performance_protocol(
    config: FlowConfig, engine_version: str, blocks: int = 1
) -> dict[str, Any]:
    """Lists everything that must be equal for two performance results to be comparable.

    Args:
        config: the profile.
        engine_version: version of the engine, from its log.
        blocks: how many times each server was started anew. With 1 the key is left out.
    """
    return {
        **({} if blocks == 1 else {"blocks": blocks}),
        "engine_arguments": engine_arguments(config),
        "engine_version": engine_version,
        "guidellm_version": importlib.metadata.version("guidellm"),
        "performance": config.performance.model_dump(mode="json", exclude={"blocks"}),
        "seed": config.seed,
    }


def read_load_points(
    path: Path, config: FlowConfig, client: ClientCpu, places: Sequence[Place]
) -> tuple[LoadPoint, ...]:
    """Reads the load points from GuideLLM's JSON output, in the order measured.

    Args:
        path: the file that GuideLLM wrote.
        config: the profile, which says when a load point is valid.
        client: the CPU time of the GuideLLM that wrote the file.
        places: (concurrency, repeat) of the requested load points, in order.

    Raises:
        FlowError: the file is not GuideLLM's, or its load points are not the requested ones.
    """
    report = read_document(
        path,
        LoadReport,
        "an output of GuideLLM 0.8",
        "It was edited, or written by another version",
    )
    measured = [load.config.strategy.streams for load in report.benchmarks]
    asked = [concurrency for concurrency, _ in places]
    if measured != asked:
        raise FlowError(
            f"GuideLLM measured the load points {measured}, it was asked for {asked}.",
            f"See {path}.",
        )
    pairs = zip(report.benchmarks, places, strict=True)
    return tuple(_point(load, config, client, repeat) for load, (_, repeat) in pairs)


def _point(load: Load, config: FlowConfig, client: ClientCpu, repeat: int) -> LoadPoint:
    metrics, totals = load.metrics, load.metrics.request_totals
    output_tokens = metrics.output_token_count.successful.mean
    reason = _invalid_reason(totals, output_tokens, config)
    return LoadPoint(
        concurrency=load.config.strategy.streams,
        repeat=repeat,
        seconds=load.duration,
        completed_requests=totals.successful,
        errored_requests=totals.errored,
        incomplete_requests=totals.incomplete,
        prompt_tokens=metrics.prompt_token_count.successful.mean,
        output_tokens=output_tokens,
        requests_per_s=metrics.requests_per_second.successful.mean,
        output_tokens_per_s=metrics.output_tokens_per_second.total.mean,
        ttft_ms=_latency(metrics.time_to_first_token_ms.successful),
        itl_ms=_latency(metrics.inter_token_latency_ms.successful),
        request_latency_s=_latency(metrics.request_latency.successful),
        client_cpu_share=client.share(load.start_time, load.end_time),
        client_limited=client.limited(load.start_time, load.end_time, config.device),
        valid=not reason,
        invalid_reason=reason,
    )


def _latency(spread: Spread) -> Latency:
    percentiles = spread.percentiles
    return Latency(mean=spread.mean, p50=percentiles.p50, p95=percentiles.p95, p99=percentiles.p99)


def _invalid_reason(totals: Totals, output_tokens: float, config: FlowConfig) -> str:
    """Explains why a load point is not valid; empty if it is valid."""
    load = config.performance
    if totals.errored:
        return f"{totals.errored} of {totals.total} requests failed"
    if totals.successful < load.min_requests:
        return (
            f"{totals.successful} requests completed, performance.min_requests is "
            f"{load.min_requests}"
        )
    if abs(output_tokens - load.output_tokens) > OUTPUT_TOKENS_TOLERANCE * load.output_tokens:
        return (
            f"{output_tokens:.1f} output tokens per request, performance.output_tokens is "
            f"{load.output_tokens}"
        )
    return ""
