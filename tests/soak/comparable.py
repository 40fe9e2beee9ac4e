"""What of a result must be the same whenever it is made from the same inputs: all but times,
speed and memory.
"""

from __future__ import annotations

import re
from typing import Any

from model_serve_flow.system.files import leaves

ENDINGS = ("_seconds", "_per_s", "_at")
MEASURED = {
    "seconds",
    "milliseconds",
    "requests",  # what was answered before an interruption is counted as that
    "peak_memory_bytes",
    "completed_requests",  # how many fit into the time
    "incomplete_requests",
    "ttft_ms",
    "itl_ms",
    "request_latency_s",
    "client_cpu_share",
    "client_limited",
    "busy",  # what other programs took
    "others_share",
    "capacity",
}
WHOLE = "protocol"  # what was asked for, seconds and objectives among it
_MILLISECONDS = re.compile(r"\d+(?:\.\d+)? ms\b")
SHOWN = 5


def comparable(document: Any) -> Any:
    """The document without what time, speed and memory had a part in.

    Left are the items with every answer and value, the distributions, the protocol and all hashes,
    the load points that were measured, whether they are valid, and what the engine said of itself.
    """
    if isinstance(document, dict):
        return {
            key: value if key == WHOLE else comparable(value)
            for key, value in document.items()
            if key not in MEASURED and not key.endswith(ENDINGS)
        }
    if isinstance(document, list):
        return [comparable(value) for value in document]
    return _MILLISECONDS.sub("… ms", document) if isinstance(document, str) else document


def first_differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Where two nested documents differ: the first places with both values,
    and how many more there are.
    """
    ours, theirs = (dict(leaves(document)) for document in (expected, found))
    places = [place for place in {**ours, **theirs} if _differ(place, ours, theirs)]
    lines = [
        f"{place}: {theirs.get(place, 'nothing')} instead of {ours.get(place, 'nothing')}"
        for place in places
    ]
    more = [f"and {len(places) - SHOWN} more differences"] if len(places) > SHOWN else []
    return lines[:SHOWN] + more


def _differ(place: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if place not in ours or place not in theirs:
        return True
    one, other = ours[place], theirs[place]
    return one != other or type(one) is not type(other)
