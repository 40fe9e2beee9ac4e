"""One verdict for a CI job, of a comparison with one or several candidates."""

from __future__ import annotations

from model_serve_flow.flow.results.compared import Comparison, Decision


def gate_verdict(comparison: Comparison, chosen: str | None = None) -> Decision:
    """Reduces a comparison to one verdict.

    It is the verdict of the chosen candidate. Without a choice it answers whether any candidate may
    be deployed: SHIP if one ships; else INCONCLUSIVE if one is not decided; else DO NOT SHIP.

    Args:
        comparison: what 06 found.
        chosen: the candidate that the profile would deploy; none: the one that 06 recommends.
    """
    verdicts = {candidate.name: candidate.verdict for candidate in comparison.candidates}
    if chosen is not None:
        return verdicts[chosen]
    found = set(verdicts.values())
    if "SHIP" in found:
        return "SHIP"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in found else "DO NOT SHIP"
