"""Provides what the notebook of 05_Compressed_Performance uses: the functions of 02 and blocks."""

from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.blocks import measure_in_blocks
from model_serve_flow.measure.guidellm.generator import load_generator
from model_serve_flow.report.formatting import capacity_sentence
from model_serve_flow.report.measurement_charts import load_curves
from model_serve_flow.report.notebook_tables import capacity_table, load_table
from model_serve_flow.serve.chat import ask

__all__ = [
    "Flow",
    "ask",
    "capacity_sentence",
    "capacity_table",
    "load_curves",
    "load_generator",
    "load_table",
    "measure_in_blocks",
]
