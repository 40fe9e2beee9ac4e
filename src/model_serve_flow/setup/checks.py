"""One thing that was looked at before a run, and what came of it."""

from __future__ import annotations

from rich.markup import escape

from model_serve_flow.system.records import Record
from model_serve_flow.system.sizes import gib


class Check(Record):
    """One thing that was looked at.

    Attributes:
        ok: whether the run may go on.
        warning: whether it may go on, but not as well as the reader may think; the advice says why.
    """

    name: str
    ok: bool
    value: str
    needed: str
    advice: str
    warning: bool = False

    @property
    def outcome(self) -> str:
        """The result in a word."""
        return "does not fit" if not self.ok else "warning" if self.warning else "ok"

    def __rich__(self) -> str:
        """One line for the terminal, with the advice only where it is wanted."""
        word = "FAILED" if not self.ok else "WARNING" if self.warning else "ok"
        line = f"{word}  {self.name}: {self.value}; needed: {self.needed}"
        return escape(line if word == "ok" else f"{line}. {self.advice}")


def fits(name: str, available: int, needed: int, advice: str) -> Check:
    """A check that so many bytes are there."""
    return Check(
        name=name, ok=available >= needed, value=gib(available), needed=gib(needed), advice=advice
    )
