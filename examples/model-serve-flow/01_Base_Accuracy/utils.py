"""What this lesson uses, a look at the questions, and the base compared with itself."""

import json

import pandas as pd

from model_serve_flow.accuracy import measure_accuracy, measure_accuracy_again
from model_serve_flow.charts import accuracy_bars
from model_serve_flow.distribution import divergence_table, measure_distribution
from model_serve_flow.flow import Flow
from model_serve_flow.results import AccuracyResult
from model_serve_flow.serving import serve
from model_serve_flow.tables import accuracy_table

__all__ = [
    "Flow", "accuracy_bars", "accuracy_table", "divergence_table", "measure_accuracy", "measure_accuracy_again",
    "measure_distribution", "noise_table", "sample_questions", "serve",
]  # fmt: skip


def sample_questions(flow: Flow) -> pd.DataFrame:
    """The first item of every task; a task of lm-eval's own brings its data only when it runs."""
    rows = []
    for task in flow.config.accuracy.tasks:
        path = flow.workspace.data / f"{task}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        first = json.loads(lines[0]) if lines else {}
        text = first.get("question") or first.get("text", "")
        rows.append(
            {"task": task, "items": len(lines) or "lm-eval's own", "first item": f"{text[:120]}…" if text else ""}
        )
    return pd.DataFrame(rows).set_index("task")


def noise_table(first: AccuracyResult, second: AccuracyResult | None) -> pd.DataFrame:
    """Task x metric whose values are 0 or 1: answers that flipped; any other: values that moved."""
    rows = []
    for task, scored in first.tasks.items() if second else ():
        others = {item.id: item for item in second.tasks[task].items}
        for metric in [metric for metric in scored.metrics if metric in scored.items[0].__pydantic_extra__]:
            pairs = [(item.value(metric), others[item.id].value(metric)) for item in scored.items]
            rows.append({"task": task, "metric": metric, "items": len(pairs), **_changes(pairs)})
    return pd.DataFrame(rows).fillna("")


def _changes(pairs: list[tuple[float, float]]) -> dict[str, str]:
    moved = f"{max(abs(two - one) for one, two in pairs):.2g}"
    if {value for pair in pairs for value in pair} - {0.0, 1.0}:
        return {"largest change": moved}
    return {"right to wrong": str(pairs.count((1.0, 0.0))), "wrong to right": str(pairs.count((0.0, 1.0)))}
