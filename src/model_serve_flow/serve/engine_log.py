"""The reason why vLLM died, as its log gives it:
the first exception of the process that failed first.
"""

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

# "(EngineCore pid=12) ERROR 11-29 07:54:00 [core.py:1510] text"; what a process prints by itself
# has no such start.
_LOGGED = re.compile(r"\(([\w-]+ pid=\d+)\) [A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]*\]) ?(.*)")
# What the engine's processes say before the traceback of what ended them. Other tracebacks may be
# of one request.
_FATAL = re.compile(r"(EngineCore|WorkerProc) (failed|hit an exception|encountered a fatal error)")
# What the server and the engine say when a process that they started is gone: no cause.
_CONSEQUENCE = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
)
_TRACEBACK = "Traceback (most recent call last):"
# Between the exceptions of a chain, of which the first is the cause.
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_FRAME = re.compile(r'  File "(?:.*/site-packages/)?(.+?)", line (\d+)')


@dataclass(frozen=True)
class _Line:
    """A line of the log: the process and the place in its code that logged it ("" if printed),
    and what it says.
    """

    who: str
    text: str


def root_cause(log: str, *, ended_by_itself: bool = True) -> str | None:
    """The exception that ended the engine, with the place that raised it;
    none if the log holds none.

    vLLM's last lines are the traceback of the server, which only says that its engine is gone. The
    cause stands above: the first traceback that an engine or worker process announced as fatal,
    else the first one that is more than a consequence. Of a chain of exceptions the first is the
    cause, and the last says what it led to.

    Args:
        log: the text of vLLM's log.
        ended_by_itself: false for a server that was killed: only a traceback that was announced as
            fatal is its cause then.
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
    """What the process of the line at `place` said before it."""
    who = lines[place].who
    return (
        next((line.text for line in reversed(lines[:place]) if line.who == who), "") if who else ""
    )


def _chain(lines: Sequence[_Line], start: int) -> Iterator[str]:
    """The exceptions of the traceback that starts there, and of those that followed from it."""
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
    """The lines until one that was logged."""
    for line in lines:
        if line.who:
            return
        yield line.text


def _shown(message: Sequence[str], frame: str) -> str:
    text = "\n".join(line for line in message if line.strip())
    short = "\n".join(text[:MESSAGE_CHARACTERS].splitlines()[:MESSAGE_LINES])
    return f"{short} ({frame})" if frame else short
