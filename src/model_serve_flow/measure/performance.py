"""Measures performance with GuideLLM at the same load points for every model."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

from model_serve_flow.flow.busy import disturbance, disturbed, less_disturbed
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import Capacity, LoadPoint, PerformanceResult
from model_serve_flow.measure.capacity import measure_capacity, pooled
from model_serve_flow.measure.guidellm.generator import LoadGenerator
from model_serve_flow.measure.load_points import Place, measure_load
from model_serve_flow.measure.provenance import (
    earlier,
    proven_facts,
    provenance,
    require_arguments,
    say_kept,
)
from model_serve_flow.serve.engine import PERFORMANCE
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.serve.server import Server
from model_serve_flow.system import live
from model_serve_flow.system.files import write_json

# keys of the section that choose load points and do not change how a load point is measured
WHICH_LOADS = frozenset({"concurrency", "repeats", "slo"})


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
            raw = self.flow.workspace.raw(self.server.model_name) / f"{name}.json"
            search = measure_capacity(self.flow.config, self.server, self.generator, raw)
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
        server = self.server
        name = (
            f"guidellm-{name}" if self.blocks == 1 else f"block-{self.block(places[0][1])}-{name}"
        )
        path = self.flow.workspace.raw(server.model_name) / f"{name}.json"
        points = measure_load(self.flow.config, server, self.generator, path, places)
        for place, point in zip(places, points, strict=True):
            self.points[place] = point.model_copy(update={"block": self.block(place[1])})
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
        return PerformanceResult(
            model=source.model,
            protocol=source.protocol,
            protocol_hash=source.protocol_hash,
            engine=source.engine,
            seconds=source.seconds,
            points=points,
            capacity=capacity,
            searches=kept,
        )

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
        "engine_arguments": list(engine_of(config).arguments(PERFORMANCE)),
        "engine_version": engine_version,
        "guidellm_version": importlib.metadata.version("guidellm"),
        "performance": config.performance.model_dump(mode="json", exclude={"blocks"}),
        "seed": config.seed,
    }
