"""Writes sentences of the report: headline, caveat, and what each chart shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from model_serve_flow.compare.margins import seal_sentence
from model_serve_flow.compare.ranking import recommended
from model_serve_flow.compare.reading import must_not_ship, worst
from model_serve_flow.flow.results.compared import CandidateComparison, Comparison
from model_serve_flow.report.formatting import NOT_MEASURED, byte_text, change
from model_serve_flow.report.sections import ranking
from model_serve_flow.report.tables import speedup_range
from model_serve_flow.serve.kernels import kernel_caveat

MEANING = {
    "SHIP": "may replace the base model.",
    "DO NOT SHIP": "must not replace the base model.",
    "INCONCLUSIVE": "is not decided by these measurements.",
}
KEEP = "Keep the base model: no candidate may replace it."
SYMBOL = {"SHIP": "✓", "DO NOT SHIP": "✕", "INCONCLUSIVE": "?"}


def accuracy_words(comparison: Comparison) -> str:
    """Says what the chart of accuracy differences shows."""
    parts = [
        f"{candidate.name}: worst is {worst_text(candidate)}" for candidate in comparison.candidates
    ]
    return (
        "Accuracy difference of each candidate from the base, with 95 % intervals. "
        + "; ".join(parts)
        + "."
    )


def speed_words(comparison: Comparison) -> str:
    """Says what the chart of latency and throughput shows."""
    parts = [
        f"{c.name}: " + ("must not ship" if must_not_ship(c) else f"speed-up {speedup_range(c)}")
        for c in comparison.candidates
    ]
    return (
        "Median request latency against output tokens per second at each load point. "
        + "; ".join(parts)
        + "."
    )


def cost_words(comparison: Comparison) -> str:
    """Says what the chart of accuracy and cost shows."""
    return (
        "Average score against cost per million output tokens at capacity. "
        f"{' '.join(ranking(comparison))}"
    )


def size_words(comparison: Comparison) -> str:
    """Says what the chart of sizes and memory shows."""
    parts = [
        f"{candidate.name}: {byte_text(candidate.size_bytes)}"
        for candidate in comparison.candidates
    ]
    parts.insert(0, f"base: {byte_text(comparison.base.size_bytes)}")
    return "Size of the checkpoints and peak memory while serving. " + "; ".join(parts) + "."


def worst_text(candidate: CandidateComparison) -> str:
    """Writes the worst accuracy difference, e.g. '−8.3 points (word_analogies acc)'."""
    if (row := worst(candidate)) is None:
        return NOT_MEASURED
    task, metric, difference = row
    return f"{change(difference)} ({task} {metric})"


def headline(comparison: Comparison) -> str:
    """Answers in one sentence whether a candidate may replace the base."""
    ships = [candidate.name for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    count = len(comparison.candidates)
    if not ships:
        undecided = any(candidate.verdict == "INCONCLUSIVE" for candidate in comparison.candidates)
        return (
            "Not decided: measure more before a candidate replaces the base model."
            if undecided
            else KEEP
        )
    candidates = f"{count} candidate{'s' if count > 1 else ''}"
    answer = f"{len(ships)} of {candidates} may replace the base model: {', '.join(ships)}."
    return answer if len(ships) == 1 else f"{answer} Recommended: {recommended(comparison)}."


def caveat(comparison: Comparison, manifest: Mapping[str, Any]) -> str:
    """Says what a reader must know before reading on.

    It names margins that were changed, a note on the base, and a processor whose INT8 sums
    saturate.
    """
    kernels = " ".join(candidate.kernel for candidate in comparison.candidates)
    hardware = as_mapping(manifest.get("hardware"))
    architecture, features = hardware.get("architecture"), hardware.get("cpu_features")
    known = isinstance(architecture, str) and isinstance(features, list | tuple)
    saturates = kernel_caveat(kernels, architecture, features) if known else ""
    moved = comparison.margins is not None and comparison.margins.changed
    sentences = (seal_sentence(comparison.margins) if moved else "", comparison.base.note)
    return " ".join(filter(None, (*sentences, saturates)))


def repeat_command(profile: str, overrides: Mapping[str, Any]) -> str:
    """Returns the command line that repeats the whole flow with the same settings."""
    words = ["model-serve-flow", "run", "--profile", profile]
    for key, value in overrides.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Returns the value if it is a mapping, else an empty mapping: a manifest may hold anything."""
    return value if isinstance(value, Mapping) else {}
