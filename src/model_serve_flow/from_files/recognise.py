"""Recognises the files of a side by their content, and reads them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_serve_flow.errors import BadInput
from model_serve_flow.from_files import own_results
from model_serve_flow.from_files.lm_eval_files import KIND as LM_EVAL
from model_serve_flow.from_files.lm_eval_files import is_lm_eval, read_lm_eval
from model_serve_flow.from_files.load_files import (
    GUIDELLM,
    VLLM,
    is_guidellm,
    is_vllm_bench,
    json_documents,
    read_guidellm,
    read_vllm_bench,
)
from model_serve_flow.from_files.own_results import ACCURACY, PERFORMANCE
from model_serve_flow.from_files.score_files import KIND as SCORES
from model_serve_flow.from_files.score_files import is_score_file, read_scores
from model_serve_flow.from_files.sides import (
    EXPECTED,
    Answers,
    Load,
    Side,
    as_bad_input,
    require_plain,
)

OWN_ANSWERS, OWN_SPEED = "accuracy of this flow", "performance of this flow"
ANSWERS = (OWN_ANSWERS, LM_EVAL, SCORES)  # kinds with answers; a side has only one of them
SAMPLES = "samples_"  # beginning of the names of lm-eval's samples
NAME_ONE = "Name one of these files."
SUFFIXES = (".json", ".jsonl", ".csv")

Found = Mapping[str, list[Path]]  # kind -> its files, in the order of their names


def read_side(path: Path) -> Side:
    """Reads one side: a file, or a folder with files of one or several kinds.

    Raises:
        BadInput: names the file that is wrong, or the folder without a known file.
    """
    found = _look(path)
    answering = [kind for kind in ANSWERS if found.get(kind)]
    if len(answering) > 1:
        files = ", ".join(str(found[kind][0]) for kind in answering)
        raise BadInput(f"{path} holds answers of several kinds: {files}.", NAME_ONE)
    with as_bad_input():
        answers = _answers(answering[0], found[answering[0]]) if answering else None
        side = Side(path, answers, _loads(found), tuple(kind for kind in found if found[kind]))
    for file, what, name in _names(side, found, answering):
        require_plain(file, what, name)
    return side


def _names(side: Side, found: Found, answering: list[str]) -> Iterator[tuple[Path, str, str]]:
    """Yields every name that is printed: the file it is of, what it names, and the name."""
    if side.answers:
        path = found[answering[0]][0] if len(found[answering[0]]) == 1 else side.path
        yield path, "model", side.answers.model
        for name, task in side.answers.tasks.items():
            yield path, "task", name
            yield from ((path, "metric", metric) for metric in task.accuracy.metrics)
            yield from ((path, "id", item.id) for item in task.accuracy.items)
    yield from ((side.path, "load", load.load) for load in side.loads)


def is_read(path: Path, side: Path) -> bool:
    """Checks whether a file is the side, or a file of its folder that is read.

    Raises:
        BadInput: the file is a .json file of the folder and not JSON.
    """
    place = os.path.realpath(path)
    if not side.is_dir():
        return place == os.path.realpath(side)
    inside = (file for pattern in ("*", "*/*") for file in side.glob(pattern))
    same = next((file for file in inside if os.path.realpath(file) == place), None)
    if same is None or not same.is_file():
        return False
    return same.name.startswith(SAMPLES) or kind_of(same) is not None


def kind_of(path: Path) -> str | None:
    """Recognises by its content which tool wrote the file.

    Returns:
        The kind; None if it is unknown.

    Raises:
        BadInput: a .json file is not JSON.
    """
    if path.suffix != ".json":
        return SCORES if path.suffix in SUFFIXES and is_score_file(path) else None
    document = next(json_documents(path), None)
    own = document.get("kind") if isinstance(document, dict) else None
    if own in ("accuracy", "performance"):
        return OWN_ANSWERS if own == "accuracy" else OWN_SPEED
    known = {LM_EVAL: is_lm_eval, GUIDELLM: is_guidellm, VLLM: is_vllm_bench}
    return next((kind for kind, is_kind in known.items() if is_kind(document)), None)


def _look(path: Path) -> Found:
    if path.is_dir():
        return _look_into(path)
    if path.name.startswith(SAMPLES):
        raise BadInput(f"{path} holds samples only.", "Name the results_*.json beside it.")
    if path.suffix in (".csv", ".jsonl"):  # its reader reports what is wrong
        return {SCORES: [path]}
    kind = kind_of(path)
    if kind is None:
        raise BadInput(f"{path} is of no known kind.", EXPECTED)
    return {kind: [path]}


def _look_into(folder: Path) -> Found:
    """Finds the folder's files by kind.

    If it has none, looks into its subfolders: lm-eval makes one per model.
    """
    own = [folder / name for name in (ACCURACY, PERFORMANCE) if (folder / name).is_file()]
    if found := _by_kind(own):
        return found
    for pattern in ("*", "*/*"):
        if found := _by_kind(sorted(folder.glob(pattern))):
            return found
    raise BadInput(f"{folder} holds no file of a known kind.", EXPECTED)


def _by_kind(files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        samples = path.name.startswith(SAMPLES)  # read together with their results
        if path.is_file() and path.suffix in SUFFIXES and not samples and (kind := kind_of(path)):
            found[kind].append(path)
    return dict(found)


def _answers(kind: str, files: list[Path]) -> Answers:
    if kind == LM_EVAL:
        return read_lm_eval(files)
    if kind == SCORES:
        return read_scores(files)
    if len(files) > 1:
        raise BadInput(f"{files[0]} and {files[1]} are both accuracy results.", NAME_ONE)
    return own_results.read_accuracy(files[0])


def _loads(found: Found) -> tuple[Load, ...]:
    readers: dict[str, Any] = {
        OWN_SPEED: own_results.read_performance,
        GUIDELLM: read_guidellm,
        VLLM: read_vllm_bench,
    }
    kinds = [kind for kind in found if kind in readers]
    return tuple(load for kind in kinds for path in found[kind] for load in readers[kind](path))
