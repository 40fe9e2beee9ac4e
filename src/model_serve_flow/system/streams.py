"""Prepares terminals that cannot show every character."""

from __future__ import annotations

import sys
from typing import Any


def show_what_can_be_shown() -> None:
    """Makes a terminal without UTF-8 show "?" for a missing character instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
