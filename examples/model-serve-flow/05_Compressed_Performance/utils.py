"""What this lesson uses: the functions of 02, once more."""

from model_serve_flow.charts import load_curves
from model_serve_flow.flow import Flow
from model_serve_flow.performance import measure_performance
from model_serve_flow.serving import ask, serve
from model_serve_flow.tables import load_table

__all__ = ["Flow", "ask", "load_curves", "load_table", "measure_performance", "serve"]
