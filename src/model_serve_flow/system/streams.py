"""Terminals that cannot show every character."""

from __future__ import annotations

import sys
from typing import Any


def show_what_can_be_shown() -> None:
    """Makes a terminal that is not UTF-8 show "?" for a character that it lacks,
    instead of ending the program.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
