"""Builds the table of verdicts for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_serve_flow.compare.reading import must_not_ship
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.report.formatting import percent
from model_serve_flow.report.tables import speedup_range
from model_serve_flow.report.wording import worst_text

if TYPE_CHECKING:
    from rich.table import Table

COLOUR = {"SHIP": "bold green", "DO NOT SHIP": "bold red", "INCONCLUSIVE": "bold yellow"}


def verdict_table(comparison: Comparison) -> Table:
    """Builds a table with a row per candidate: size, worst difference, speed-up, verdict."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{comparison.base.name}: may a compressed model replace it?", title_justify="left"
    )
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
