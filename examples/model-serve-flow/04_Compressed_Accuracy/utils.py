"""Provides what the notebook of 04_Compressed_Accuracy uses: the functions of 01 and the looks."""

from model_serve_flow.compare.looks import interim_verdict
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import measure_accuracy_in_looks, prepare_evaluation
from model_serve_flow.measure.distribution import measure_distribution
from model_serve_flow.report.measurement_charts import accuracy_bars
from model_serve_flow.report.notebook_tables import accuracy_table, divergence_table
from model_serve_flow.serve.launch import serve_each

__all__ = [
    "Flow", "accuracy_bars", "accuracy_table", "divergence_table", "interim_verdict",
    "measure_accuracy_in_looks", "measure_distribution", "prepare_evaluation", "serve_each",
]  # fmt: skip
