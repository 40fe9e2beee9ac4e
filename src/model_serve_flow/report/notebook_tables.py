"""Builds the tables of measurements for the notebooks."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from model_serve_flow.compare.distribution_shift import compare_tokens
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    DistributionResult,
    LoadPoint,
    PerformanceResult,
)

if TYPE_CHECKING:
    import pandas as pd


def accuracy_table(results: dict[str, AccuracyResult]) -> pd.DataFrame:
    """Builds a table of task x metric x model: value, standard error, items, chance."""
    import pandas as pd

    rows = [
        {
            "task": task,
            "metric": metric,
            "model": name,
            "value": round(figure.value, 4),
            "stderr": round(figure.stderr, 4) if figure.stderr is not None else "",
            "items": scored.n,
            "chance": round(scored.chance, 3) if scored.chance is not None else "",
        }
        for name, result in results.items()
        for task, scored in result.tasks.items()
        for metric, figure in scored.metrics.items()
    ]
    return pd.DataFrame(rows).set_index(["task", "metric", "model"]).sort_index()


def divergence_table(
    base: DistributionResult | None, others: dict[str, DistributionResult | None]
) -> pd.DataFrame:
    """Builds a table of how far each model's next-token distributions are from the base's.

    The columns are the number of tokens, how often the likeliest token is the same, and the mean KL
    divergence. What the profile does not measure is left out.

    Raises:
        FlowError: a model was measured on other documents or tokens than the base, or its
            probabilities are impossible.
    """
    import pandas as pd

    rows = []
    for name, other in others.items():
        if base is None or other is None:
            continue
        per_document, agreement = compare_tokens(base, other)
        divergence = np.concatenate(per_document)
        rows.append(
            {
                "model": name,
                "tokens": divergence.size,
                "same likeliest token": f"{agreement:.1%}",
                "mean KL divergence (nats per token, at least)": f"{divergence.mean():.2g}",
            }
        )
    return pd.DataFrame(rows)


def load_table(results: dict[str, PerformanceResult]) -> pd.DataFrame:
    """Builds a table of load point x model: throughput, latencies, request counts, client CPU.

    Figures are means over the repeats; throughput also has its lowest and highest repeat. Requests
    are summed. Of the client's CPU share the highest value is shown. A load point that is not
    measured has no figures, and the last column says why.
    """
    import pandas as pd

    rows = []
    for name, result in results.items():
        found = {load: _load_row(points) for load, points in result.measured_loads().items()}
        found |= {
            load: {"measured": f"not measured: {why}"}
            for load, why in result.unmeasured_loads().items()
        }
        rows += [{"concurrency": load, "model": name, **row} for load, row in found.items()]
    return (
        pd.DataFrame(rows)
        .set_index(["concurrency", "model"])
        .sort_index()
        .astype(object)
        .fillna("")
    )


def _load_row(points: list[LoadPoint]) -> dict[str, Any]:
    """Builds one row from the repeats of one load point."""
    speeds = [point.output_tokens_per_s for point in points]
    return {
        "repeats": len(points),
        "output tokens/s": round(fmean(speeds), 1),
        "lowest to highest": f"{min(speeds):.1f} to {max(speeds):.1f}",
        "TTFT p95 (ms)": round(fmean(point.ttft_ms.p95 for point in points)),
        "ITL p95 (ms)": round(fmean(point.itl_ms.p95 for point in points), 1),
        "request latency p50 (s)": round(fmean(point.request_latency_s.p50 for point in points), 2),
        "completed": sum(point.completed_requests for point in points),
        "failed": sum(point.errored_requests for point in points),
        "client CPU": f"{max(point.client_cpu_share for point in points):.1%}",
        "client-limited": "yes" if any(point.client_limited for point in points) else "",
        "measured": "yes",
    }


def capacity_table(results: dict[str, PerformanceResult]) -> pd.DataFrame:
    """Builds a table of model x load of the goodput search, in the order tried.

    It shows the share of requests that met the objectives.
    """
    import pandas as pd

    columns = [
        "model",
        "concurrency",
        "requests",
        "met both",
        "95 % interval",
        "passed",
        "output tokens/s",
    ]
    rows = [
        (
            name,
            probe.streams,
            probe.requests,
            f"{probe.attainment:.0%}",
            "{:.0%} to {:.0%}".format(*probe.ci95),
            "yes" if probe.passed else "no",
            round(probe.output_tokens_per_s, 1),
        )
        for name, result in results.items()
        if result.capacity is not None
        for probe in result.capacity.probes
    ]
    return pd.DataFrame(rows, columns=columns).set_index(["model", "concurrency"])
