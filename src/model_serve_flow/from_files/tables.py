"""Makes the tables of a comparison from files, in the form of the report's templates."""

from __future__ import annotations

from model_serve_flow.flow.results.compared import Difference
from model_serve_flow.from_files.records import (
    ComparedLoad,
    ComparedTask,
    FileComparison,
)
from model_serve_flow.report.formatting import (
    change,
    interval,
    margin,
    number,
    retention,
    times,
    value,
)
from model_serve_flow.report.tables import Cell, Table, flipped_table, reading

NONE = Cell("–")
COLUMNS = (
    "Task",
    "Items#",
    "Base → candidate#",
    "Difference, 95 %#",
    "Accepted loss#",
    "Right, now wrong#",
    "Reading¶",
)
HEADINGS = Table("", COLUMNS, ()).headings


def task_table(comparison: FileComparison) -> Table:
    """Makes one row per task: scores, difference, right answers that became wrong, and reading."""
    rows = []
    if comparison.suite:
        rows.append(_row(Cell("average", "of deciding tasks"), comparison.suite))
    rows += [task_row(name, task) for name, task in comparison.tasks.items()]
    lacking = (*[NONE] * 5, Cell("missing: SHIP is withheld"))
    rows += [(Cell(f"{name} (required)"), *lacking) for name in comparison.missing]
    return Table("Answers: candidate minus base, paired item by item", COLUMNS, tuple(rows))


def metric_table(comparison: FileComparison) -> Table:
    """Makes the table of the metrics that do not decide."""
    rows = tuple(
        _row(Cell(name, metric), difference)
        for name, task in comparison.tasks.items()
        for metric, difference in task.metrics.items()
        if metric != task.primary
    )
    return Table("Other metrics, which do not decide", COLUMNS, rows)


def speed_table(comparison: FileComparison) -> Table:
    """Makes one row per load."""
    columns = (
        "Load",
        "Repeats#",
        "Base → candidate, output tokens/s#",
        "Speed-up, 95 %#",
        "Reading¶",
    )
    return Table(
        "Speed, which never decides alone",
        columns,
        tuple(_speed_row(load) for load in comparison.speed),
    )


def answers_table(comparison: FileComparison) -> Table:
    """Lists the items whose answer became right or wrong."""
    return flipped_table([item for task in comparison.tasks.values() for item in task.flipped])


def task_row(name: str, task: ComparedTask) -> tuple[Cell, ...]:
    """Makes one row of `task_table`."""
    return _row(_task_cell(name, task), task.difference)


def _task_cell(name: str, task: ComparedTask) -> Cell:
    tier = "" if task.tier == "deciding" else f" ({task.tier})"
    return Cell(f"{name}{tier}", task.primary)


def _row(name: Cell, difference: Difference) -> tuple[Cell, ...]:
    return (
        name,
        Cell(f"{difference.n:,}", _clusters(difference), difference.n),
        Cell(f"{value(difference.base, difference)} → {value(difference.candidate, difference)}"),
        Cell(change(difference), interval(difference), difference.difference),
        Cell(margin(difference), retention(difference), difference.margin),
        _loss_cell(difference),
        Cell(reading(difference)),
    )


def _clusters(difference: Difference) -> str:
    found = difference.clusters
    return "" if found is None else f"{found.count:,} clusters"


def _loss_cell(difference: Difference) -> Cell:
    loss = difference.gross_loss
    if loss is None:
        return NONE
    assert difference.flips is not None
    broken = difference.flips.right_to_wrong
    return Cell(f"{loss.percent:.1f} %", f"{broken:,} of {loss.right:,}", loss.percent)


def _speed_row(load: ComparedLoad) -> tuple[Cell, ...]:
    repeats = Cell(" / ".join(map(str, load.repeats)))
    ours, theirs = load.base_output_tokens_per_s, load.candidate_output_tokens_per_s
    if load.speedup is None or ours is None or theirs is None:
        return Cell(load.load), repeats, NONE, NONE, Cell(load.pace, load.reason)
    speeds = f"{number(ours)} → {number(theirs)}"
    between = "{:.2f} to {:.2f}".format(*load.speedup_ci95) if load.speedup_ci95 else "no interval"
    return (
        Cell(load.load),
        repeats,
        Cell(speeds),
        Cell(times(load.speedup), between),
        Cell(load.pace, load.reason),
    )
