"""Shows the progress of the steps on the terminal, and explains a failed notebook."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Lines
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from model_serve_flow.system.live import Live

PLAIN_SECONDS = 30.0  # between two lines of a step where there is no terminal
# tags of the cells that papermill adds to the executed notebook
ADDED_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
MESSAGE_LINES = 30


class Progress:
    """Shows one line per step; on a terminal the line is live and shows the time.

    Without a terminal, it prints a line when a step starts, every 30 s, and when it ends.
    """

    def __init__(self, console: Console, modules: Sequence[str]) -> None:
        self.console = console
        self.width = max((len(module) for module in modules), default=0)
        self.module, self.started, self.printed = "", 0.0, 0.0
        self.live = console.is_terminal
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            # A long note takes a second line of a narrow terminal.
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
        )
        self.lines = Lines(*columns, console=console, disable=not self.live)
        self.task: Any = None

    def __enter__(self) -> Self:
        self.lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.stop()

    def start(self, module: str, note: str = "") -> None:
        self.module, self.started = module, time.monotonic()
        self.printed = self.started
        if self.live:
            self.task = self.lines.add_task(module.ljust(self.width), total=1, note=note)
        else:
            self._print(f"{module}: started")

    def cells(self, number: int, total: int, doing: Live | None = None) -> None:
        """Shows the current cell (`total` is 0 if unknown) and the work in progress."""
        cell = f"cell {number} of {total}" if total else ""
        note = ", ".join(filter(None, [cell, str(doing or "")]))
        if self.live and note:
            self.lines.update(self.task, note=escape(note))
        elif not self.live and time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            elapsed = self.printed - self.started
            self._print(f"{self.module}: {elapsed:.0f} s, {note or 'its kernel starts'}")

    def finish(self, module: str) -> None:
        self._end(module, "[green]done[/green]", "finished")

    def fail(self, module: str) -> None:
        self._end(module, "[red]stopped[/red]", "stopped")

    def skip(self, module: str) -> None:
        self._print(f"  {module.ljust(self.width)}  skipped: its inputs are unchanged")

    def say(self, line: str) -> None:
        """Prints a line of its own."""
        self._print(line)

    def _end(self, module: str, live: str, plain: str) -> None:
        if self.live:
            self.lines.update(self.task, completed=1, note=live)
        else:
            self._print(f"{module}: {plain} after {time.monotonic() - self.started:.1f} s")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def executed_cells(notebook: Path) -> tuple[int, int]:
    """Returns the current cell and the number of cells of a notebook that papermill is writing.

    Both are 0 if they are unknown.
    """
    try:
        cells = _own_cells(notebook)
    except (FileNotFoundError, json.JSONDecodeError):
        # The file does not exist yet, or papermill is writing it.
        return 0, 0
    begun = [number for number, cell in enumerate(cells, 1) if _papermill(cell).get("start_time")]
    return max(begun, default=1), len(cells)


def failure(module: str, notebook: Path, log: Path, status: int) -> str:
    """Says which cell of a notebook failed and why; if none did, returns the end of the log."""
    cells = _own_cells(notebook) if notebook.is_file() else []
    for number, cell in enumerate(cells, 1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                first = next(
                    (line for line in "".join(cell["source"]).splitlines() if line.strip()), ""
                )
                reason = "\n".join(
                    f"{output['ename']}: {output['evalue']}".splitlines()[:MESSAGE_LINES]
                )
                return (
                    f"{module} failed in cell {number} of {len(cells)} ({first.strip()})\n{reason}"
                )
    tail = "\n".join(
        log.read_text(encoding="utf-8", errors="replace").splitlines()[-MESSAGE_LINES // 2 :]
    )
    return f"{module} failed (exit status {status}) outside its cells:\n{tail}"


def _own_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if not ADDED_TAGS & set(cell["metadata"].get("tags", []))]


def _papermill(cell: dict[str, Any]) -> dict[str, Any]:
    return cell["metadata"].get("papermill", {})
