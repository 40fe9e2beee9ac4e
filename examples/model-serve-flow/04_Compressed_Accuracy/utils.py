"""What this lesson uses: the functions of 01, once more."""

from model_serve_flow.accuracy import measure_accuracy
from model_serve_flow.charts import accuracy_bars
from model_serve_flow.flow import Flow
from model_serve_flow.serving import serve
from model_serve_flow.tables import accuracy_table

__all__ = ["Flow", "accuracy_bars", "accuracy_table", "measure_accuracy", "serve"]
