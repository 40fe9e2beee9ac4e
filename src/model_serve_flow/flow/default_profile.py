"""Chooses the default profile by the processor of this machine."""

from __future__ import annotations

import platform

from model_serve_flow.system.processor import CPUINFO, describe_cpu, serves_int4


def default_profile() -> str:
    """Returns the name of the profile that runs if the user names none.

    It is `cpu-smollm2`, or `cpu-smollm2-avx2` if the processor cannot serve INT4. A machine with a
    GPU has the same default. The GPU profile downloads a model of 15 GiB, which should only start
    on request.
    """
    return for_this_processor("cpu-smollm2")


def for_this_processor(profile: str) -> str:
    """Returns a CPU profile's name, or its variant without INT4 if this processor needs it."""
    there = CPUINFO.is_file()  # missing on other systems, which the flow refuses with a message
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if there else ""
    _, features = describe_cpu(text)
    return profile if serves_int4(platform.machine(), features) else f"{profile}-avx2"
