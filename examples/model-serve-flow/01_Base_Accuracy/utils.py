"""Provides what the notebook of 01_Base_Accuracy uses, and the views that only it shows."""

import json

import pandas as pd

from model_serve_flow.compare.distribution_shift import pairs_of_second
from model_serve_flow.compare.margins import seal_margins
from model_serve_flow.compare.pairs import Pairs, count_flips
from model_serve_flow.compare.stats.paired import is_binary, wilson_interval
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import AccuracyResult
from model_serve_flow.measure.accuracy import (
    measure_accuracy,
    measure_accuracy_again,
    prepare_evaluation,
)
from model_serve_flow.measure.distribution import measure_distribution
from model_serve_flow.report.measurement_charts import accuracy_bars
from model_serve_flow.report.notebook_tables import accuracy_table, divergence_table
from model_serve_flow.serve.launch import serve

__all__ = [
    "Flow", "accuracy_bars", "accuracy_table", "divergence_table", "measure_accuracy",
    "measure_accuracy_again",
    "measure_distribution", "noise_table", "prepare_evaluation", "sample_questions", "seal_margins",
    "serve", "ways",
]  # fmt: skip


def sample_questions(flow: Flow) -> pd.DataFrame:
    """Shows the first item of every task.

    The items of lm-eval's own tasks are not here yet: lm-eval loads them when it runs.
    """
    rows = []
    for task in flow.config.accuracy.tasks:
        path = flow.workspace.data / f"{task}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        first = json.loads(lines[0]) if lines else {}
        text = first.get("question") or first.get("text", "")
        rows.append(
            {
                "task": task,
                "items": len(lines) or "lm-eval's own",
                "first item": f"{text[:120]}…" if text else "",
            }
        )
    return pd.DataFrame(rows).set_index("task")


def ways(result: AccuracyResult) -> str:
    """Counts the requests by the way in which lm-eval asked them, in one line."""
    return "; ".join(f"{way}: {count:,}" for way, count in result.requests.items())


def noise_table(first: AccuracyResult, second: AccuracyResult | None) -> pd.DataFrame:
    """Compares the base with itself: the items that were asked twice.

    Each task and metric shows the answers that flipped, or the largest change of other values.
    """
    rows = []
    for task, pairs in pairs_of_second(first, second).items() if second else ():
        for metric in [
            metric for metric in first.tasks[task].metrics if pairs.values(metric) is not None
        ]:
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "items": len(pairs.rows),
                    **_changes(pairs, metric),
                }
            )
    return pd.DataFrame(rows).fillna("")


def _changes(pairs: Pairs, metric: str) -> dict[str, str]:
    first, second = pairs.oriented(metric)
    if not (is_binary(first) and is_binary(second)):
        return {"largest change": f"{abs(second - first).max():.2g}"}
    flips = count_flips(first == 1, second == 1)
    share = wilson_interval(flips.right_to_wrong + flips.wrong_to_right, len(first))
    return {
        "right to wrong": str(flips.right_to_wrong),
        "wrong to right": str(flips.wrong_to_right),
        "flipped": f"{share.difference:.1%}",
        "95 % interval": f"{share.low:.1%} to {share.high:.1%}",
    }
