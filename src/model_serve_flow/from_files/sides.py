"""Defines one side of a comparison, independent of the tool that wrote its files."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_serve_flow.errors import BadInput, FlowError
from model_serve_flow.flow.results.measured import TaskAccuracy

EXPECTED = (
    "Each side is a file, or a folder that holds such files: accuracy.json or performance.json of "
    "this flow; results_*.json of lm-eval 0.4 beside its samples_*.jsonl (--log_samples); a CSV or "
    "JSONL of id and score; the JSON of GuideLLM 0.8 or of vllm bench serve."
)


CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # categories: control, half a character, new line or paragraph
NO_CHARACTERS = "\ufffe\uffff"  # XML cannot hold them
RENAME = "Write it with letters, digits and signs only, on both sides."


@dataclass(frozen=True)
class Task:
    """The scored items of one task.

    Attributes:
        protocol: settings that must be equal on both sides, e.g. 'task version' -> 2.
        questions: item id -> digest of the question and the expected answer; may lack items.
    """

    accuracy: TaskAccuracy
    protocol: Mapping[str, Any] = field(default_factory=dict)
    questions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """The answers of one side.

    Attributes:
        kind: the tool that wrote the file. Both sides must have the same kind, because tools give
            different ids.
        surroundings: settings that may differ; the reader is told, e.g. 'engine_version' ->
            '0.32.0'.
    """

    kind: str
    tasks: Mapping[str, Task]
    model: str = ""
    surroundings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """One measurement at one load.

    Attributes:
        load: the load in words, e.g. '8 concurrent requests'.
        problem: why the measurement cannot be compared; empty if it can.
    """

    load: str
    output_tokens_per_s: float
    prompt_tokens: float
    output_tokens: float
    problem: str = ""


@dataclass(frozen=True)
class Side:
    """Base or candidate: its answers, its speed measurements, or both."""

    path: Path
    answers: Answers | None = None
    loads: tuple[Load, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def answered(self) -> Answers:
        """The answers; the side must have some."""
        assert self.answers is not None
        return self.answers


def concurrent(requests: int) -> str:
    """Words the load of so many requests at once."""
    return f"{requests} concurrent request{'' if requests == 1 else 's'}"


def is_plain(text: str) -> bool:
    """Checks that no character ends a line, controls a terminal, or cannot be written to a file."""
    return not any(unicodedata.category(c) in CONTROL or c in NO_CHARACTERS for c in text)


def escaped(text: str) -> str:
    """Writes the characters that are not plain as escapes, e.g. a new line as '\\n'."""
    return "".join(c if is_plain(c) else ascii(c)[1:-1] for c in text)


def require_plain(place: Path | str, what: str, text: str) -> None:
    """Refuses a name that would forge lines of a log, or that a file cannot hold.

    Args:
        place: the file, for the message, and its line if known.
        what: what the name is of, e.g. 'task'.

    Raises:
        BadInput: names the place and the name, with its characters escaped.
    """
    if not is_plain(text):
        raise BadInput(f"{place}: the {what} {text!a} holds a control character.", RENAME)


@contextlib.contextmanager
def as_bad_input(hint: str = EXPECTED) -> Iterator[None]:
    """Turns a FlowError of the block into BadInput: the user's files are wrong, not the program.

    Raises:
        BadInput: the block raised a FlowError.
    """
    try:
        yield
    except BadInput:
        raise
    except FlowError as error:
        raise BadInput(escaped(error.problem), hint) from error
