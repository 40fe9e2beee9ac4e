"""Provides what the notebook of 06_Comparison uses: comparison, report, cards and ship record."""

import json
from collections.abc import Iterable
from pathlib import Path

from IPython.display import HTML, Markdown
from pandas import DataFrame

from model_serve_flow.compare.comparison import compare_workspace
from model_serve_flow.deploy.ship_record import write_ship_records
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.report import charts, tables
from model_serve_flow.report.formatting import markdown
from model_serve_flow.report.model_card import write_model_card
from model_serve_flow.report.report import Report, template, write_workspace_report
from model_serve_flow.report.sections import Note, diagnosis_notes, ranking
from model_serve_flow.report.tables import Table

__all__ = [
    "Flow", "charts", "compare_workspace", "diagnosis_notes", "ranking", "report_links",
    "show_notes", "show_record",
    "show_table", "show_verdict", "tables", "write_model_card", "write_ship_records",
    "write_workspace_report",
]  # fmt: skip


def show_table(table: Table) -> Markdown:
    """Shows a table of the report; values that are no gain are struck through."""
    return Markdown(template("tables.md.j2").module.table(table))


def show_notes(notes: Iterable[Note]) -> Markdown:
    """Shows sentences of the report; values that are no gain are struck through."""
    return Markdown("\n\n".join(template("tables.md.j2").module.sentence(note) for note in notes))


def show_verdict(comparison: Comparison) -> Markdown:
    """Shows each candidate's verdict with its reasons."""
    parts = [
        f"### {markdown(candidate.name)}: {candidate.verdict}\n\n"
        + "\n".join(f"- {markdown(reason)}" for reason in candidate.reasons)
        for candidate in comparison.candidates
    ]
    return Markdown("\n\n".join(parts))


def show_record(path: Path) -> DataFrame:
    """Lists the candidates of the ship record: verdict, and the checkpoint it is bound to."""
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (
            entry["name"],
            entry["verdict"],
            entry["recommended"],
            len(entry["files"]),
            entry["sha256"],
        )
        for entry in record["candidates"]
    ]
    return DataFrame(
        rows, columns=["candidate", "verdict", "recommended", "files", "SHA-256"]
    ).set_index("candidate")


def report_links(written: Report) -> HTML:
    """Shows where the report is stored: links that work in JupyterLab, and plain paths."""
    files = (written.html, written.markdown, *written.charts)
    rows = "".join(
        f'<li><a href="{file.as_uri()}">{file.name}</a> <code>{file}</code></li>' for file in files
    )
    return HTML(f"<ul>{rows}</ul>")
