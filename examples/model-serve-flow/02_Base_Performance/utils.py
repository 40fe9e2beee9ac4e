"""Provides what the notebook of 02_Base_Performance uses."""

from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.generator import load_generator
from model_serve_flow.measure.performance import measure_performance
from model_serve_flow.report.formatting import capacity_sentence
from model_serve_flow.report.measurement_charts import load_curves
from model_serve_flow.report.notebook_tables import capacity_table, load_table
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.launch import serve

__all__ = [
    "Flow",
    "ask",
    "capacity_sentence",
    "capacity_table",
    "load_command",
    "load_curves",
    "load_generator",
    "load_table",
    "measure_performance",
    "serve",
    "stream",
]
