"""Tables of measurements for the notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_serve_flow.results import AccuracyResult, PerformanceResult

if TYPE_CHECKING:
    import pandas as pd


def accuracy_table(results: dict[str, AccuracyResult]) -> pd.DataFrame:
    """Model x task x metric: value, standard error, items, chance."""
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


def load_table(results: dict[str, PerformanceResult]) -> pd.DataFrame:
    """Model x load point: throughput, latencies, request counts."""
    import pandas as pd

    rows = [
        {
            "concurrency": point.concurrency,
            "model": name,
            "output tokens/s": round(point.output_tokens_per_s, 1),
            "TTFT p95 (ms)": round(point.ttft_ms.p95),
            "ITL p95 (ms)": round(point.itl_ms.p95, 1),
            "request latency p50 (s)": round(point.request_latency_s.p50, 2),
            "completed": point.completed_requests,
            "failed": point.errored_requests,
            "valid": point.invalid_reason or "yes",
        }
        for name, result in results.items()
        for point in result.points
    ]
    return pd.DataFrame(rows).set_index(["concurrency", "model"]).sort_index()
