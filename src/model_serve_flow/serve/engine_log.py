"""Finds in vLLM's log why vLLM ended: the first exception of the process that failed first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SILENT = (
    "The engine's process ended without an exception. That is how a killed process ends, for "
    "instance when the machine has no memory left."
)
MESSAGE_LINES = 6
MESSAGE_CHARACTERS = 1500

# "(EngineCore pid=12) ERROR 11-29 07:54:00 [core.py:1510] text". Printed text has no such start.
_LOGGED = re.compile(r"\(([\w-]+ pid=\d+)\) [A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]*\]) ?(.*)")
# The engine's processes log this before the traceback that ends them. Other tracebacks may concern
# only one request.
_FATAL = re.compile(r"(EngineCore|WorkerProc) (failed|hit an exception|encountered a fatal error)")
# The server and the engine log this when a child process is gone. It is a consequence, not a cause.
_CONSEQUENCE = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
)
_TRACEBACK = "Traceback (most recent call last):"
# Python prints this between the exceptions of a chain. The first exception is the cause.
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_FRAME = re.compile(r'  File "(?:.*/site-packages/)?(.+?)", line (\d+)')


@dataclass(frozen=True)
class _Line:
    """A line of the log.

    Attributes:
        who: the process and the source location that logged the line; empty for printed text.
        text: the message.
    """

    who: str
    text: str


def root_cause(log: str, *, ended_by_itself: bool = True) -> str | None:
    """Finds the exception that ended the engine, with the place that raised it.

    vLLM's last lines are the server's traceback, which only says that its engine is gone. The cause
    is above: the first traceback that an engine or worker process announced as fatal. Without such
    a traceback, the cause is the first exception that is not a mere consequence. In a chain of
    exceptions, the first is the cause, and the last is its result.

    Args:
        log: the text of vLLM's log.
        ended_by_itself: False for a server that was killed. Then only a traceback that was
            announced as fatal is the cause.

    Returns:
        None if the log contains no exception.
    """
    lines = [_parse(line) for line in log.splitlines()]
    starts = [place for place, line in enumerate(lines) if line.text == _TRACEBACK]
    fatal = [place for place in starts if _FATAL.search(_announcement(lines, place))]
    chains = [
        list(_chain(lines, place)) for place in [*fatal, *(starts if ended_by_itself else [])]
    ]
    chains = [chain for chain in chains if chain]
    cause = next((chain for chain in chains if not _CONSEQUENCE.search(chain[0])), None)
    if cause is not None:
        return "\nThat led to: ".join(dict.fromkeys([cause[0], cause[-1]]))
    return f"{SILENT}\n{chains[0][0]}" if chains else None


def _parse(line: str) -> _Line:
    logged = _LOGGED.match(line)
    return _Line(f"{logged[1]} {logged[2]}", logged[3]) if logged else _Line("", line)


def _announcement(lines: Sequence[_Line], place: int) -> str:
    """Returns the last message that the process of line `place` logged before it."""
    who = lines[place].who
    return (
        next((line.text for line in reversed(lines[:place]) if line.who == who), "") if who else ""
    )


def _chain(lines: Sequence[_Line], start: int) -> Iterator[str]:
    """Yields the exceptions of the traceback that starts at `start`, and those that followed it."""
    who = lines[start].who
    own = (
        (line.text for line in lines[start:] if line.who == who) if who else _printed(lines[start:])
    )
    frame, message, linked = "", list[str](), True
    for text in own:
        if text == _TRACEBACK:
            if not linked:
                break
            linked = False
        elif text.startswith(_CHAIN):
            linked = True
            if message:
                yield _shown(message, frame)
            frame, message = "", []
        elif (found := _FRAME.match(text)) and not message:
            frame = f"{found[1]}:{found[2]}"
        elif message or (text and not text.startswith(" ")):
            message.append(text)
    if message:
        yield _shown(message, frame)


def _printed(lines: Sequence[_Line]) -> Iterator[str]:
    """Yields the lines before the next logged line."""
    for line in lines:
        if line.who:
            return
        yield line.text


def _shown(message: Sequence[str], frame: str) -> str:
    text = "\n".join(line for line in message if line.strip())
    short = "\n".join(text[:MESSAGE_CHARACTERS].splitlines()[:MESSAGE_LINES])
    return f"{short} ({frame})" if frame else short
