"""Reads a CSV or JSONL of `id, score`, with optional columns `task` and `cluster`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_serve_flow.errors import BadInput
from model_serve_flow.flow.results.measured import Item, Metric, TaskAccuracy
from model_serve_flow.from_files.sides import Answers, Task, require_plain

KIND = "scores"
TASK = "scores"  # name of the task in a file without a column `task`
METRIC = "score"
FORMAT = (
    "Expected a CSV with the columns id and score, or a JSONL with these keys, and optionally task "
    "and cluster. A score is a number from 0 to 1, or true or false. Higher is better."
)
OTHER_SIGNS = (";", "\t", "|")  # that some programs write between columns instead of commas
BOOLEANS = {"true": 1.0, "false": 0.0}

Row = tuple[int, Mapping[str, Any]]  # the line of the file, and its values by name


def is_score_file(path: Path) -> bool:
    """Checks by its first row that the file holds ids and scores."""
    try:
        first = next(_rows(path), None)
    except BadInput:
        return False
    return first is not None and {"id", "score"} <= first[1].keys()


def read_scores(paths: Iterable[Path]) -> Answers:
    """Reads the score files of one side.

    A file without a column `task` is one task. If there are several files, the task has the name of
    its file.

    Raises:
        BadInput: names the file, the line and the wrong value.
    """
    files = list(paths)
    items: dict[str, dict[str, Item]] = {}
    for path in files:
        name = TASK if len(files) == 1 else path.stem
        _read_file(path, name, items)
    return Answers(KIND, {task: Task(_task(found)) for task, found in items.items()})


def _read_file(path: Path, name: str, items: dict[str, dict[str, Item]]) -> None:
    for line, row in _rows(path):
        place = f"{path}, line {line}"
        if lacking := sorted({"id", "score"} - row.keys()):
            raise BadInput(f"{place}: {' and '.join(lacking)} is missing.", FORMAT)
        task, item = str(row.get("task") or name), _item(place, row)
        require_plain(place, "task", task)
        require_plain(place, "id", item.id)
        if item.id in items.setdefault(task, {}):
            raise BadInput(f"{place}: the id {item.id!r} occurs twice in {task}.", FORMAT)
        items[task][item.id] = item
    if not items:
        raise BadInput(f"{path} is empty.", FORMAT)


def _item(place: str, row: Mapping[str, Any]) -> Item:
    identity = row["id"]
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise BadInput(f"{place}: the id is {identity!r}.", FORMAT)
    cluster = row.get("cluster")
    groups = {} if cluster in (None, "") else {"cluster": str(cluster)}
    values: dict[str, Any] = {METRIC: _score(place, row["score"])}
    return Item(id=str(identity), answer=None, groups=groups, **values)


def _score(place: str, value: Any) -> float:
    try:
        score = BOOLEANS.get(value.strip().lower(), value) if isinstance(value, str) else value
        number = float(score)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{place}: the score {value!r:.80} is not a number.", FORMAT) from error
    if not math.isfinite(number) or not 0 <= number <= 1:
        raise BadInput(f"{place}: the score {value!r:.80} is not in the range of 0 to 1.", FORMAT)
    return number


def _task(items: Mapping[str, Item]) -> TaskAccuracy:
    values = [item.values[METRIC] for item in items.values()]
    metric = Metric(value=math.fsum(values) / len(values), stderr=None, higher_is_better=True)
    every = tuple(items.values())
    return TaskAccuracy(n=len(items), chance=None, metrics={METRIC: metric}, items=every)


def _rows(path: Path) -> Iterator[Row]:
    """Yields every row with its line number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (
                _json_rows(path, file) if path.suffix == ".jsonl" else _csv_rows(path, file)
            )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}.", FORMAT) from error


def _csv_rows(path: Path, file: Iterable[str]) -> Iterator[Row]:
    reader = csv.DictReader(file, skipinitialspace=True)
    header = ",".join(reader.fieldnames or ())
    if "," not in header and (sign := next((s for s in OTHER_SIGNS if s in header), None)):
        problem = f"{path}, line 1: the columns are {header!r}, with {sign!r} between them."
        raise BadInput(problem, "Separate id and score with commas.")
    for row in reader:
        yield (
            reader.line_num,
            {str(key).strip(): value for key, value in row.items() if value is not None},
        )


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {number} is not valid JSON: {error}.", FORMAT) from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number} is not an object with id and score.", FORMAT)
        yield number, row
