"""Searches the calibration text for evaluation items, by runs of words that both contain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import Overlap
from model_serve_flow.system.files import read_rows

NGRAM = 13  # words in a row, as in the contamination check of GPT-3 (Brown et al. 2020, appendix C)
SHORTEST = 8  # the shortest n-gram of that check: shorter runs are common phrases


def find_overlap(
    calibration: Iterable[str], items: Mapping[str, str], ngram: int = NGRAM
) -> Overlap:
    """Finds the items that share a run of `ngram` words with the calibration texts.

    Case and punctuation do not count. An item shorter than `ngram` is searched for as a whole if it
    has at least 8 words; shorter items are skipped.

    Args:
        calibration: the texts shown to the compressor.
        items: "task/id" -> text.
        ngram: words in a row.
    """
    texts = [words(text) for text in calibration]
    runs: dict[int, set[str]] = {}  # by length; made for the first item of that length
    looked_at, overlapping = 0, []
    for name, text in items.items():
        item = words(text)
        if len(item) < SHORTEST:
            continue
        looked_at += 1
        length = min(ngram, len(item))
        if length not in runs:
            runs[length] = {run for known in texts for run in _runs(known, length)}
        if any(run in runs[length] for run in _runs(item, length)):
            overlapping.append(name)
    return Overlap(ngram=ngram, items=looked_at, overlapping=tuple(overlapping))


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


def _runs(text: list[str], length: int) -> Iterable[str]:
    return (" ".join(text[start : start + length]) for start in range(len(text) - length + 1))


def evaluation_texts(flow: Flow) -> dict[str, str] | None:
    """Returns the text of every evaluation item, by "task/id".

    For a packaged question, the text is the question without its choices, which are single words or
    letters. For lm-eval's own tasks, it is the whole prompt that 01 recorded, examples included.
    Texts that lm-eval only scores have no prompt and are left out.

    Returns:
        None if a task is lm-eval's own and 01 has not measured it yet.

    Raises:
        FlowError: 01 measured other tasks than the profile names.
    """
    tasks = flow.config.accuracy.tasks
    packaged = [task for task in tasks if (flow.workspace.data / f"{task}.jsonl").is_file()]
    own = [task for task in tasks if task not in packaged]
    if own and not (flow.workspace.results("base") / "accuracy.json").is_file():
        return None
    texts = {}
    for task in packaged:
        rows = read_rows(flow.workspace.data / f"{task}.jsonl")
        texts |= {f"{task}/{row['id']}": row.get("question") or row["text"] for row in rows}
    return texts | (_prompts(flow, own) if own else {})


def _prompts(flow: Flow, tasks: list[str]) -> dict[str, str]:
    measured = flow.workspace.accuracy("base").tasks
    if missing := [task for task in tasks if task not in measured]:
        raise FlowError(f"The base was not measured on {', '.join(missing)}.", RERUN)
    return {
        f"{task}/{item.id}": item.prompt
        for task in tasks
        for item in measured[task].items
        if item.prompt is not None
    }
