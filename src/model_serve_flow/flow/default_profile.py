"""Chooses the profile that is run where the user names none, by the processor of this machine."""

from __future__ import annotations

import platform

from model_serve_flow.system.processor import CPUINFO, describe_cpu, serves_int4


def default_profile() -> str:
    """The name of the profile that is run where the user names none.

    It is `cpu-smollm2`, or `cpu-smollm2-avx2` where the processor cannot serve INT4. A machine with
    a GPU has the same default: the profile for a GPU downloads a model of 15 GiB, which nobody
    should start without asking for it.
    """
    return for_this_processor("cpu-smollm2")


def for_this_processor(profile: str) -> str:
    """A CPU profile's name, or its variant without INT4 where this processor cannot serve that."""
    there = CPUINFO.is_file()  # not on other systems, which the flow refuses with a message
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if there else ""
    _, features = describe_cpu(text)
    return profile if serves_int4(platform.machine(), features) else f"{profile}-avx2"
