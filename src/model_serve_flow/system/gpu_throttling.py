"""Measures how long the clocks of the GPUs were held back, with nvidia-smi."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree

from model_serve_flow.system.gpus import ask

COUNTERS = "clocks_event_reasons_counters"  # of microseconds, with drivers from about 550 on
POWER_CAP = "sw_power_cap"
HEAT_OR_BRAKE = ("sw_therm", "hw_therm", "hw_power_brak")  # drivers end these names differently


def gpu_throttled_seconds() -> float | None:
    """Returns the seconds until now in which heat or a power brake slowed a GPU.

    It is the longest time of one reason on one GPU. All GPUs of this machine count. The ordinary
    power cap does not count: under a heavy load it is how many GPUs work.

    Returns:
        None if there is no GPU, or its driver does not count this.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    text, _ = ask("-q", "-x", "-d", "PERFORMANCE")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    found = [time for counters in root.iter(COUNTERS) for time in _times(counters)]
    return max(found) / 1e6 if found else None


def _times(counters: ElementTree.Element) -> list[int]:
    """Returns the microseconds of each reason that counts, on one GPU."""
    times = {
        counter.tag.removeprefix(f"{COUNTERS}_"): int(text.split()[0])
        for counter in counters
        if (text := counter.text or "").endswith(" us")
    }
    capped = times.get(POWER_CAP)
    # A driver was seen that counts the power cap as heat too, see the software's two counters.
    return [
        time
        for name, time in times.items()
        if name.startswith(HEAT_OR_BRAKE) and not (name.startswith("sw_") and time == capped)
    ]
