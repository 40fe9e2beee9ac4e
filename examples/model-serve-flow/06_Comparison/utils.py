"""What this lesson uses: the comparison, its tables and charts, and the report."""

from IPython.display import HTML, Markdown
from pandas import DataFrame

from model_serve_flow import charts, report
from model_serve_flow.comparison import compare_workspace
from model_serve_flow.flow import Flow
from model_serve_flow.report import Report, write_workspace_report
from model_serve_flow.results import Comparison

__all__ = [
    "Flow", "accuracy_table", "charts", "compare_workspace", "report_links", "show_verdict", "size_table",
    "speed_table", "write_workspace_report",
]  # fmt: skip


def accuracy_table(comparison: Comparison) -> DataFrame:
    """One row per candidate and metric: both values, the paired difference, its interval and the margin."""
    rows = [
        (candidate.name, task, metric, d.n, report.value(d.base, d), report.value(d.candidate, d), report.change(d),
         report.interval(d), report.margin(d), report.reading(d))
        for candidate in comparison.candidates
        for task, metric, d in report.all_differences(candidate)
    ]  # fmt: skip
    names = ["candidate", "task", "metric", "n", "base", "compressed", "difference", "95 % interval", "margin",
             "reading"]  # fmt: skip
    return DataFrame(rows, columns=names).set_index(["candidate", "task", "metric"])


def speed_table(comparison: Comparison) -> DataFrame:
    """One row per candidate and load point: output tokens/s, their ratio, and latencies as base → candidate."""
    rows = [
        (candidate.name, p.concurrency, f"{p.base_output_tokens_per_s:.1f}", f"{p.candidate_output_tokens_per_s:.1f}",
         report.times(p.speedup), _arrow(p.ttft_ms_p95, 0), _arrow(p.itl_ms_p95, 1), _arrow(p.request_latency_s_p50, 2))
        for candidate in comparison.candidates
        for p in candidate.performance
    ]  # fmt: skip
    names = ["candidate", "concurrent requests", "base output tokens/s", "compressed output tokens/s", "speed-up",
             "TTFT p95, ms", "ITL p95, ms", "request latency, median, s"]  # fmt: skip
    return DataFrame(rows, columns=names).set_index(["candidate", "concurrent requests"])


def size_table(comparison: Comparison) -> DataFrame:
    """One row per model: size on disk, share of the base, peak memory while serving."""
    base = comparison.base
    rows = [("base", "", charts.byte_text(base.size_bytes), "100 %", report.memory(base.memory.peak_bytes))]
    for c in comparison.candidates:
        share = report.percent(c.size_ratio)
        rows.append((c.name, c.scheme, charts.byte_text(c.size_bytes), share, report.memory(c.memory.peak_bytes)))
    return DataFrame(rows, columns=["model", "scheme", "size", "of base", "peak memory"]).set_index("model")


def show_verdict(comparison: Comparison) -> Markdown:
    """Each candidate's verdict with its reasons."""
    parts = [
        f"### {report.cell(candidate.name)}: {candidate.verdict}\n\n"
        + "\n".join(f"- {report.cell(reason)}" for reason in candidate.reasons)
        for candidate in comparison.candidates
    ]
    return Markdown("\n\n".join(parts))


def report_links(written: Report) -> HTML:
    """Where the report lies, as links that work in JupyterLab's file system and as plain paths."""
    files = (written.html, written.markdown, *written.charts)
    rows = "".join(f'<li><a href="{file.as_uri()}">{file.name}</a> <code>{file}</code></li>' for file in files)
    return HTML(f"<ul>{rows}</ul>")


def _arrow(values: dict[str, float], digits: int) -> str:
    return f"{values['base']:.{digits}f} → {values['candidate']:.{digits}f}"
