"""Writes a comparison from files to the terminal, and as HTML, Markdown, JSON and JUnit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from model_serve_flow.compare.stats.paired import ALPHA
from model_serve_flow.errors import BadInput, FlowError
from model_serve_flow.from_files import tables
from model_serve_flow.from_files.recognise import is_read
from model_serve_flow.from_files.records import ComparedLoad, ComparedTask, FileComparison
from model_serve_flow.report.report import template
from model_serve_flow.report.tables import Cell, Table
from model_serve_flow.report.terminal import COLOUR
from model_serve_flow.system.files import write_json, write_text

LOG_WIDTH = 110  # columns of a log, where there is no terminal
LEAST_WIDTH = 14  # characters of a column with longer text
GAP = 3  # characters between two columns
XML = '<?xml version="1.0" encoding="UTF-8"?>'
SUITE, SPEED = "compare", "compare: speed"

OTHER_FILE = "Name another file."
KEPT = (
    "What was there before is as it was. Make the folder writable for this user and free space "
    "there, or name a file elsewhere with --{}."
)

Case = tuple[str, str | None, str]  # name; 'failure', 'skipped' or None; message


def show(comparison: FileComparison, console: Console | None = None) -> None:
    """Prints the sentence, the tables and the notes."""
    console = console or _console()
    console.print(Text(comparison.sentence, style=COLOUR[comparison.verdict]), soft_wrap=True)
    console.print()
    for table in _shown(comparison):
        _print_table(console, table)
    for note in comparison.notes:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)


def write_html(path: Path, comparison: FileComparison) -> None:
    """Writes the comparison as one self-contained page."""
    write_text(path, template("compare.html.j2", escaped=True).render(_facts(comparison)))


def write_markdown(path: Path, comparison: FileComparison) -> None:
    """Writes the comparison as Markdown, for a comment or a job's summary."""
    write_text(path, template("compare.md.j2").render(_facts(comparison)))


def write_junit(path: Path, comparison: FileComparison) -> None:
    """Writes a test case for the verdict, for each task and for each load."""
    root = ElementTree.Element("testsuites", name=SUITE)
    _add_suite(root, SUITE, [_verdict_case(comparison), *_task_cases(comparison)])
    if comparison.speed:
        _add_suite(root, SPEED, [_speed_case(load) for load in comparison.speed])
    ElementTree.indent(root)
    document = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f"{XML}\n{document}\n")


WRITERS: dict[str, Callable[[Path, FileComparison], object]] = {
    "html": write_html,
    "markdown": write_markdown,
    "json": write_json,
    "junit": write_junit,
}


def write(name: str, path: Path, comparison: FileComparison) -> None:
    """Writes the output of one option.

    Args:
        name: the option without dashes, a key of `WRITERS`.

    Raises:
        FlowError: the file cannot be written; names it and the option.
    """
    try:
        WRITERS[name](path, comparison)
    except FlowError as error:
        raise FlowError(error.problem, KEPT.format(name)) from error
    except OSError as error:
        problem = f"The file {path} cannot be written: {error.strerror}."
        raise FlowError(problem, KEPT.format(name)) from error


def require_outputs(outputs: Mapping[str, Path], sides: Iterable[Path]) -> None:
    """Refuses outputs that would overwrite a file of a side, one another, or no regular file.

    Args:
        outputs: name of the option, without dashes -> the file it names.

    Raises:
        BadInput: names the option and the file.
    """
    sides, taken = tuple(sides), dict[str, str]()
    for name, path in outputs.items():
        if _is_special(path):
            problem = f"--{name}: {path} exists, and is not a regular file."
            raise BadInput(problem, OTHER_FILE)
        if side := next((side for side in sides if is_read(path, side)), None):
            problem = f"--{name}: {path} would overwrite what is compared, {side}."
            raise BadInput(problem, OTHER_FILE)
        other = taken.setdefault(os.path.realpath(path), name)
        if other != name:
            raise BadInput(f"--{other} and --{name} name the same file: {path}.", OTHER_FILE)


def _is_special(path: Path) -> bool:
    """Checks whether the path exists and is no regular file: a folder, a device or a pipe."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # it does not exist, or writing it will tell why not
        return False


def _shown(comparison: FileComparison) -> Iterator[Table]:
    if comparison.tasks or comparison.missing:
        yield tables.task_table(comparison)
    if comparison.speed:
        yield tables.speed_table(comparison)


def _facts(comparison: FileComparison) -> dict[str, object]:
    """Collects what both templates need."""
    others, flipped = tables.metric_table(comparison), tables.answers_table(comparison)
    folded = [table for table in (others, flipped) if table.rows]
    return {"c": comparison, "tables": list(_shown(comparison)), "folded": folded}


# --- The terminal ---


def _console() -> Console:
    console = Console()
    if _is_log(console):
        console.width = LOG_WIDTH
    return console


def _is_log(console: Console) -> bool:
    return not console.is_terminal and "COLUMNS" not in os.environ


def _print_table(console: Console, table: Table) -> None:
    """Prints the whole table: a log has lines as long as needed, a terminal wraps every column."""
    needed = _needed_width(table)
    if _is_log(console):
        console.width = max(console.width, needed)
    console.print(_rich(table, wraps=console.width < needed))


def _rich(table: Table, *, wraps: bool) -> RichTable:
    """Converts the table for a console; with enough room, only long text wraps."""
    shown = RichTable(title=table.caption, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name, kind in table.headings:
        shown.add_column(
            _heading(name),
            justify="right" if kind == "n" else "left",
            no_wrap=kind != "long" and not wraps,
            min_width=LEAST_WIDTH if kind == "long" and not wraps else None,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(_lines(cell)) for cell in row))
    return shown


def _needed_width(table: Table) -> int:
    """Computes the width in which only long text wraps."""
    widths = []
    for number, (name, kind) in enumerate(table.headings):
        texts = [_heading(name), *(_lines(row[number]) for row in table.rows)]
        lines = [line for text in texts for line in text.splitlines()]
        widths.append(LEAST_WIDTH if kind == "long" else max(map(cell_len, lines), default=0))
    return sum(widths) + GAP * len(widths) - 1


def _heading(name: str) -> str:
    return name.replace(", ", ",\n").replace("→ ", "→\n")


def _lines(cell: Cell) -> str:
    return "\n".join(filter(None, (cell.text, cell.sub)))


# --- JUnit ---


def _verdict_case(comparison: FileComparison) -> Case:
    return "verdict", None if comparison.verdict == "SHIP" else "failure", comparison.sentence


def _task_cases(comparison: FileComparison) -> Iterator[Case]:
    for name, task in comparison.tasks.items():
        yield name, _outcome(task), _task_words(task)
    for name in comparison.missing:
        yield name, "failure", "required, and missing"


def _outcome(task: ComparedTask) -> str | None:
    """Returns the JUnit outcome of a task.

    A task that does not decide is skipped. A task that is not surely within its margin fails.
    """
    difference = task.difference
    undecided = difference.silent or difference.too_few is not None
    if task.tier == "advisory" or (undecided and task.tier == "deciding"):
        return "skipped"
    within = difference.adjusted_p is not None and difference.adjusted_p[0] <= ALPHA
    return None if within and not undecided else "failure"


def _task_words(task: ComparedTask) -> str:
    _, *cells = tables.task_row("", task)
    headings = (name for name, _ in tables.HEADINGS[1:])
    words = (f"{cell.text} ({cell.sub})" if cell.sub else cell.text for cell in cells)
    return "; ".join(f"{name}: {text}" for name, text in zip(headings, words, strict=True))


def _speed_case(load: ComparedLoad) -> Case:
    return load.load, None, f"{load.pace} {load.reason}".strip()


def _add_suite(root: ElementTree.Element, name: str, cases: list[Case]) -> None:
    counts = {
        "tests": len(cases),
        "failures": sum(outcome == "failure" for _, outcome, _ in cases),
        "skipped": sum(outcome == "skipped" for _, outcome, _ in cases),
        "errors": 0,
    }
    attributes = {"name": name, **{key: str(count) for key, count in counts.items()}}
    suite = ElementTree.SubElement(root, "testsuite", attributes)
    for case, outcome, words in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=name, name=case, time="0")
        if outcome is None:
            ElementTree.SubElement(element, "system-out").text = words
        else:
            ElementTree.SubElement(element, outcome, message=words)
