"""What this lesson uses."""

from model_serve_flow.charts import load_curves
from model_serve_flow.flow import Flow
from model_serve_flow.performance import guidellm_command, measure_performance
from model_serve_flow.serving import ask, serve, stream
from model_serve_flow.tables import load_table

__all__ = ["Flow", "ask", "guidellm_command", "load_curves", "load_table", "measure_performance", "serve", "stream"]
