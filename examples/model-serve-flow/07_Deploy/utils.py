"""Provides what the notebook of 07_Deploy uses, and the views that only it shows."""

from IPython.display import Markdown
from pandas import DataFrame

from model_serve_flow.deploy.choice import choose
from model_serve_flow.deploy.endpoint_checks import EndpointCheck, check_endpoint, require_checks
from model_serve_flow.deploy.record import RUNTIME_FILE, DeploymentRecord, write_deployment
from model_serve_flow.deploy.ship_record import require_shippable
from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.launch import serve

__all__ = [
    "Flow", "ask", "check_endpoint", "check_table", "choose", "differences_table",
    "require_checks", "require_shippable", "serve", "show_file", "stream", "write_deployment",
]  # fmt: skip


def check_table(checks: tuple[EndpointCheck, ...]) -> DataFrame:
    """Lists the endpoint's checks, one per row: expected, got, and milliseconds."""
    rows = [
        (c.name, c.expected, c.got, "passed" if c.ok else "FAILED", c.milliseconds, c.detail)
        for c in checks
    ]
    names = ["check", "expected", "got", "result", "milliseconds", "detail"]
    return DataFrame(rows, columns=names).set_index("check")


def differences_table(record: DeploymentRecord) -> DataFrame:
    """Lists what differs between the server that was measured and the one that is deployed."""
    rows = [(one.setting, one.measured, one.deployed, one.why) for one in record.differences]
    names = ["setting", "measured", "deployed", "why"]
    return DataFrame(rows, columns=names).set_index("setting")


def show_file(flow: Flow, name: str) -> Markdown:
    """Shows a file of the deploy folder as highlighted text.

    A cluster that brings its own runtime gets no servingruntime.yaml, and that is said instead.
    """
    if (theirs := flow.config.deploy.runtime) and name == RUNTIME_FILE:
        return Markdown(f"There is no {name}: the cluster's own runtime `{theirs}` is used.")
    text = (flow.workspace.deploy / name).read_text(encoding="utf-8")
    return Markdown(
        text if name.endswith(".md") else f"**{name}**\n```{name.rpartition('.')[2]}\n{text}```"
    )
