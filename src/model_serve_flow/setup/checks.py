"""Defines the result of one check of the machine against the profile."""

from __future__ import annotations

from rich.markup import escape

from model_serve_flow.system.records import Record
from model_serve_flow.system.sizes import gib


class Check(Record):
    """The result of one check.

    Attributes:
        ok: whether the run may continue.
        warning: whether the run continues with a disadvantage, which the advice explains.
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
        """Returns one line for the terminal; the advice is added if the check failed or warns."""
        word = "FAILED" if not self.ok else "WARNING" if self.warning else "ok"
        line = f"{word}  {self.name}: {self.value}; needed: {self.needed}"
        return escape(line if word == "ok" else f"{line}. {self.advice}")


def fits(name: str, available: int, needed: int, advice: str) -> Check:
    """Checks that enough bytes are available."""
    return Check(
        name=name, ok=available >= needed, value=gib(available), needed=gib(needed), advice=advice
    )
