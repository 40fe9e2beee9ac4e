"""Reads one of the flow's own environment variables with the standard library alone.

`settings.py` describes the variables, and everything that may import pydantic reads them there.
These modules read them here:

- `checkout`, `places`, `index`, `tools` and `environments` build the first environment on a bare
  Python, which has no pydantic.
- `live` and `processes` look for `MARKS`, `live` for every request of a measurement.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PREFIX = "MODEL_SERVE_FLOW_"
PROFILE_PREFIX = f"{PREFIX}_"  # of values of the profile: MODEL_SERVE_FLOW__PERFORMANCE__SECONDS

# What the flow sets for its own child processes: the file for a notebook's progress, and the marks
# of all processes of a run, of a server, of a load generator and of a compression.
MARKS = ("live", "run", "server", "load_generator", "compression")


def variable(setting: str) -> str:
    """Returns the name of a setting's variable: `MODEL_SERVE_FLOW_CACHE` for `cache`."""
    return f"{PREFIX}{setting.upper()}"


def value(setting: str, surrounding: Mapping[str, str] = os.environ) -> str:
    """Returns the value of a setting's variable without surrounding blanks; empty: not set."""
    return surrounding.get(variable(setting), "").strip()
