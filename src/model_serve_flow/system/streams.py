"""Terminals that cannot show every character."""

from __future__ import annotations

import sys


def show_what_can_be_shown() -> None:
    """Makes a terminal that is not UTF-8 show "?" for a character that it lacks, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
