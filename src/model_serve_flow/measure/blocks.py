"""Measures performance in blocks: each block starts every model's server anew, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import PerformanceResult
from model_serve_flow.measure.guidellm.generator import LoadGenerator
from model_serve_flow.measure.performance import PerformanceWork, measure_performance
from model_serve_flow.serve.launch import serve, serve_each
from model_serve_flow.serve.server import Server

BASE = "base"


def schedule(names: Sequence[str], blocks: int) -> list[tuple[int, str]]:
    """Lists (block, model) in the order of measuring: forwards and backwards in turn (ABBA).

    If a machine slows down steadily, every two blocks slow down all models equally.
    """
    order = list(names)
    return [
        (block, name)
        for block in range(1, blocks + 1)
        for name in (order if block % 2 else reversed(order))
    ]


def measure_in_blocks(
    flow: Flow,
    candidates: Sequence[str],
    generator: LoadGenerator,
    look: Callable[[Server], object],
) -> dict[str, PerformanceResult]:
    """Measures the performance of the base and the candidates in `performance.blocks` blocks.

    With one block, each candidate's server is started once, and the base's result is the result of
    02. With several blocks, the base is measured again beside the candidates, and its result is
    `performance_in_blocks.json`.

    Earlier measurements are kept. A server is not started if nothing of its block is missing. Only
    the first server of each model is always started, to prove that engine and kernels are still the
    same.

    Args:
        flow: the profile and its workspace.
        candidates: names of the candidates.
        generator: a running GuideLLM.
        look: called with the first server of each model, before the measurement.

    Returns:
        'base' and each candidate -> result.

    Raises:
        FlowError, ServerGone: as `measure_performance`.
    """
    blocks = flow.config.performance.blocks
    if blocks == 1:
        return _one_block(flow, candidates, generator, look)
    work: dict[str, PerformanceWork] = {}
    results: dict[str, PerformanceResult] = {}
    for block, name in schedule([BASE, *candidates], blocks):
        if name in work and not work[name].lacks(block):
            continue
        with serve(flow, name, purpose="performance") as server:
            if name not in work:
                file = "performance_in_blocks.json" if name == BASE else "performance.json"
                work[name] = PerformanceWork(flow, generator, file, blocks)
                look(server)
            print(f"block {block} of {blocks}: {name}")
            work[name].use(server)
            results[name] = work[name].measure(block)
    return results


def _one_block(
    flow: Flow,
    candidates: Sequence[str],
    generator: LoadGenerator,
    look: Callable[[Server], object],
) -> dict[str, PerformanceResult]:
    results = {BASE: flow.workspace.performance(BASE)}
    with serve_each(flow, candidates, purpose="performance") as servers:
        for server in servers:
            look(server)
            results[server.model_name] = measure_performance(flow, server, generator)
    return results
