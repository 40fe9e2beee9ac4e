"""What this lesson uses, and a look at the questions."""

import json

import pandas as pd

from model_serve_flow.accuracy import measure_accuracy
from model_serve_flow.charts import accuracy_bars
from model_serve_flow.flow import Flow
from model_serve_flow.serving import serve
from model_serve_flow.tables import accuracy_table

__all__ = ["Flow", "accuracy_bars", "accuracy_table", "measure_accuracy", "sample_questions", "serve"]


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
