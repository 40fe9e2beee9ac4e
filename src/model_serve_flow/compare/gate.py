"""Reduces a comparison with one or several candidates to one verdict for a CI job."""

from __future__ import annotations

from model_serve_flow.flow.results.compared import Comparison, Decision


def gate_verdict(comparison: Comparison, chosen: str | None = None) -> Decision:
    """Reduces a comparison to one verdict.

    With a chosen candidate it is the verdict of this candidate. Without a choice it says whether
    any candidate may be deployed: SHIP if one candidate ships, else INCONCLUSIVE if one is not
    decided, else DO NOT SHIP.

    Args:
        comparison: the result of step 06.
        chosen: the candidate that the profile would deploy. None: the profile chooses none.
    """
    verdicts = {candidate.name: candidate.verdict for candidate in comparison.candidates}
    if chosen is not None:
        return verdicts[chosen]
    found = set(verdicts.values())
    if "SHIP" in found:
        return "SHIP"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in found else "DO NOT SHIP"
