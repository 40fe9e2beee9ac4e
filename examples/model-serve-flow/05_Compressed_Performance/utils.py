"""What this lesson uses: the functions of 02, once more, and the measurement in blocks."""

from model_serve_flow.capacity import capacity_sentence
from model_serve_flow.charts import load_curves
from model_serve_flow.chat import ask
from model_serve_flow.flow import Flow
from model_serve_flow.guidellm import load_generator
from model_serve_flow.measure.blocks import measure_in_blocks
from model_serve_flow.tables import capacity_table, load_table

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
