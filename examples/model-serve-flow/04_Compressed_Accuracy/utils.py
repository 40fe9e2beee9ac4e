"""What this lesson uses: the functions of 01, once more."""

from model_serve_flow.accuracy import measure_accuracy_in_looks, prepare_evaluation
from model_serve_flow.charts import accuracy_bars
from model_serve_flow.compare.looks import interim_verdict
from model_serve_flow.distribution import measure_distribution
from model_serve_flow.flow import Flow
from model_serve_flow.serving import serve_each
from model_serve_flow.tables import accuracy_table, divergence_table

__all__ = [
    "Flow", "accuracy_bars", "accuracy_table", "divergence_table", "interim_verdict",
    "measure_accuracy_in_looks", "measure_distribution", "prepare_evaluation", "serve_each",
]  # fmt: skip
