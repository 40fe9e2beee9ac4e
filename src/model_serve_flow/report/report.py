"""Writes the report of a comparison: one self-contained HTML file, one Markdown file, charts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from model_serve_flow.compare import reading
from model_serve_flow.compare.reading import must_not_ship
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.report import chart_style, charts
from model_serve_flow.report.formatting import NOT_RECORDED, byte_text, flatten, markdown, seconds
from model_serve_flow.report.sections import sections
from model_serve_flow.report.tables import summary
from model_serve_flow.report.wording import (
    MEANING,
    SYMBOL,
    accuracy_words,
    as_mapping,
    caveat,
    cost_words,
    headline,
    repeat_command,
    size_words,
    speed_words,
)
from model_serve_flow.serve.engines import PACKAGES
from model_serve_flow.system.files import write_text

SECTIONS = {"hardware": "Hardware", "versions": "Versions", "model": "Base model", "seeds": "Seeds"}
TOOLS = PACKAGES | {
    "python", "lm-eval", "lm_eval", "guidellm", "llmcompressor",
    "compressed-tensors", "torch", "transformers",
}  # fmt: skip
MARKDOWN_FLIPS = 20  # per candidate; report.html shows more


@dataclass(frozen=True)
class Report:
    """The files of a written report."""

    html: Path
    markdown: Path
    charts: tuple[Path, ...]


@dataclass(frozen=True)
class Picture:
    """A chart for the report: as SVG for the page, as SVG for its own file, and in words."""

    name: str
    alt: str
    caption: str
    inline: Markup
    plain: str


def write_report(
    comparison: Comparison,
    manifest: Mapping[str, Any],
    folder: Path,
    samples: Mapping[str, str] | None = None,
) -> Report:
    """Writes report.html, report.md and charts/*.svg into `folder`.

    Args:
        comparison: the result of step 06.
        manifest: how the comparison was made; missing sections are shown as 'not recorded'.
        folder: where to write; it is created if it does not exist.
        samples: candidate name -> text that it generated, shown as an illustration.
    """
    pictures = draw(comparison)
    facts = {
        "c": comparison,
        "pictures": pictures,
        "samples": samples or {},
        **provenance(comparison, manifest),
    }
    facts["caveat"] = caveat(comparison, manifest)
    facts |= {
        "headline": headline(comparison),
        "summary": summary(comparison),
        "struck": _struck(comparison),
    }
    page = template("report.html.j2", escaped=True).render(facts, evidence=sections(comparison))
    text = template("report.md.j2").render(facts, evidence=sections(comparison, MARKDOWN_FLIPS))
    page, text = write_text(folder / "report.html", page), write_text(folder / "report.md", text)
    files = [
        write_text(folder / "charts" / f"{picture.name}.svg", picture.plain) for picture in pictures
    ]
    return Report(page, text, tuple(files))


def write_workspace_report(flow: Flow, comparison: Comparison | None = None) -> Report:
    """Writes the report of a profile's workspace into its report folder.

    The report shows a text that each candidate generated.

    Args:
        flow: the profile and its workspace.
        comparison: the result of step 06. None: read from report/comparison.json.

    Raises:
        FlowError: the comparison, the manifest or a candidate's compression.json is missing or not
            valid.
    """
    space = flow.workspace
    comparison = comparison or space.comparison()
    samples = {
        candidate.name: space.compression(candidate.name).sample
        for candidate in comparison.candidates
    }
    return write_report(comparison, read_manifest(space), space.report, samples)


def draw(comparison: Comparison) -> list[Picture]:
    """Draws the charts for which the comparison has data, each with its finding in words."""
    pictures = []
    if any(candidate.accuracy for candidate in comparison.candidates):
        pictures.append(
            _picture("accuracy", charts.accuracy_differences, comparison, accuracy_words)
        )
    if any(candidate.performance for candidate in comparison.candidates):
        pictures.append(_picture("speed", charts.latency_throughput, comparison, speed_words))
    if reading.offers(comparison):
        pictures.append(_picture("cost", charts.accuracy_cost, comparison, cost_words))
    pictures.append(_picture("size", charts.size_and_memory, comparison, size_words))
    return pictures


CAPTIONS = {
    "accuracy": "Marks: candidate minus base, paired item by item; whiskers: 95 % interval, "
    "simultaneous over the deciding tasks; dashed: the accepted drop.",
    "speed": "Further right: more tokens per second. Further down: less waiting. Each mark is one "
    "load point.",
    "cost": "Further up: more accurate. Further left: cheaper. Whiskers: 95 % interval of the "
    "difference from base.",
    "size": "Size counts the weight files. Peak memory is the server's, KV cache included.",
}


def _picture(
    name: str,
    draw: Callable[[Comparison], Any],
    comparison: Comparison,
    words: Callable[[Comparison], str],
) -> Picture:
    figure, alt = draw(comparison), words(comparison)
    inline = _inline(chart_style.to_svg(figure, themed=True), name, alt)
    return Picture(name, alt, CAPTIONS[name], inline, chart_style.to_svg(figure))


def _inline(svg: str, name: str, alt: str) -> Markup:
    """Prepares an SVG for a page: named for screen readers, with ids that no other chart uses."""
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip())


def provenance(comparison: Comparison, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the template's facts on how the comparison was made, whatever the manifest holds."""
    steps = {
        name: as_mapping(step).get("seconds")
        for name, step in as_mapping(manifest.get("steps")).items()
    }
    sections = {title: flatten(manifest.get(key)) for key, title in SECTIONS.items()}
    sections["Versions"] = {
        key: text for key, text in sections["Versions"].items() if _is_tool(key)
    }
    return {
        "steps": steps,
        "total_seconds": sum(
            seconds for seconds in steps.values() if isinstance(seconds, int | float)
        ),
        "sections": sections,
        "overrides": flatten(manifest.get("overrides")),
        "commit": manifest.get("commit") or NOT_RECORDED,
        "command": repeat_command(comparison.profile, as_mapping(manifest.get("overrides"))),
    }


def _is_tool(key: str) -> bool:
    """Tells whether 'environment.package' is one of the tools that shape the results.

    The manifest lists all packages.
    """
    return key.rpartition(".")[2] in TOOLS


def _struck(comparison: Comparison) -> bool:
    """Tells whether anything is struck through; then the report explains why."""
    return any(must_not_ship(candidate) for candidate in comparison.candidates)


FILTERS = {"byte_text": byte_text, "flatten": flatten, "markdown": markdown, "seconds": seconds}


def template(name: str, escaped: bool = False) -> Template:
    """Loads a template of this package; `escaped` makes it escape its values for HTML."""
    environment = Environment(
        loader=PackageLoader("model_serve_flow.report", "templates"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    names: dict[str, Any] = environment.globals
    names |= {"meaning": MEANING, "symbol": SYMBOL, "not_recorded": NOT_RECORDED}
    return environment.get_template(name)
