"""Decides load by load whether the candidate is faster: FASTER, NOT FASTER or UNSURE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from model_serve_flow.compare.speed import TOKEN_TOLERANCE
from model_serve_flow.compare.stats.paired import geometric_ratio
from model_serve_flow.from_files.records import ComparedLoad, Pace
from model_serve_flow.from_files.sides import Load

ONE_REPEAT = "one measurement of a side has no interval"


def compare_loads(base: Iterable[Load], candidate: Iterable[Load]) -> tuple[ComparedLoad, ...]:
    """Compares every load of the two sides; the same load again is a repeat.

    FASTER: the 95 % interval of the speed-up is above 1. NOT FASTER: it is below 1. UNSURE: it
    contains 1, or there is no interval.
    """
    ours, theirs = _by_load(base), _by_load(candidate)
    names = dict.fromkeys([*ours, *theirs])
    return tuple(_compare(name, ours.get(name, []), theirs.get(name, [])) for name in names)


def _by_load(loads: Iterable[Load]) -> Mapping[str, list[Load]]:
    found: dict[str, list[Load]] = {}
    for load in loads:
        found.setdefault(load.load, []).append(load)
    return found


def _compare(name: str, base: Sequence[Load], candidate: Sequence[Load]) -> ComparedLoad:
    repeats = len(base), len(candidate)
    if reason := _not_comparable(base, candidate):
        return ComparedLoad(load=name, repeats=repeats, pace="UNSURE", reason=reason)
    ours, theirs = ([load.output_tokens_per_s for load in side] for side in (base, candidate))
    speedup, interval = geometric_ratio(ours, theirs)
    return ComparedLoad(
        load=name,
        repeats=repeats,
        base_output_tokens_per_s=fmean(ours),
        candidate_output_tokens_per_s=fmean(theirs),
        speedup=speedup,
        speedup_ci95=interval,
        pace=_pace(interval),
        reason=ONE_REPEAT if interval is None else "",
    )


def _pace(interval: tuple[float, float] | None) -> Pace:
    if interval is None or interval[0] <= 1 <= interval[1]:
        return "UNSURE"
    return "FASTER" if interval[0] > 1 else "NOT FASTER"


def _not_comparable(base: Sequence[Load], candidate: Sequence[Load]) -> str:
    """Says why the load cannot be compared; empty if it can."""
    for side, loads in (("base", base), ("candidate", candidate)):
        if not loads:
            return f"not measured for the {side}"
        if problem := next((load.problem for load in loads if load.problem), ""):
            return f"{side}: {problem}"
    for field in ("prompt_tokens", "output_tokens"):
        ours, theirs = (fmean(getattr(load, field) for load in side) for side in (base, candidate))
        if not math.isclose(ours, theirs, rel_tol=TOKEN_TOLERANCE):
            name = field.replace("_", " ")
            values = f"{ours:.1f} {name} per request for the base, {theirs:.1f} for the candidate"
            return f"not the same work: {values}"
    return ""
