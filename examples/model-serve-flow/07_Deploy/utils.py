"""Provides what the notebook of 07_Deploy uses, and the views that only it shows."""

from IPython.display import Markdown
from pandas import DataFrame

from model_serve_flow.deploy.choice import choose
from model_serve_flow.deploy.endpoint_checks import EndpointCheck, check_endpoint, require_checks
from model_serve_flow.deploy.record import write_deployment
from model_serve_flow.deploy.ship_record import require_shippable
from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.launch import serve

__all__ = [
    "Flow", "ask", "check_endpoint", "check_table", "choose", "require_checks", "require_shippable",
    "serve",
    "show_file", "stream", "write_deployment",
]  # fmt: skip


def check_table(checks: tuple[EndpointCheck, ...]) -> DataFrame:
    """Lists the endpoint's checks, one per row: expected, got, and milliseconds."""
    rows = [
        (c.name, c.expected, c.got, "passed" if c.ok else "FAILED", c.milliseconds, c.detail)
        for c in checks
    ]
    names = ["check", "expected", "got", "result", "milliseconds", "detail"]
    return DataFrame(rows, columns=names).set_index("check")


def show_file(flow: Flow, name: str) -> Markdown:
    """Shows a file of the deploy folder as highlighted text."""
    text = (flow.workspace.deploy / name).read_text(encoding="utf-8")
    return Markdown(
        text if name.endswith(".md") else f"**{name}**\n```{name.rpartition('.')[2]}\n{text}```"
    )
