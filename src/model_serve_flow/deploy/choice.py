"""Chooses the model that is deployed, and says why."""

from __future__ import annotations

from model_serve_flow.compare.ranking import recommended
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.compared import Comparison, Decision
from model_serve_flow.flow.results.measured import BASE
from model_serve_flow.system.records import Record


class Choice(Record):
    """The model to deploy and the reason; `verdict` is None for the base."""

    name: str
    verdict: Decision | None
    explicit: bool
    why: str


def choose(flow: Flow, comparison: Comparison) -> Choice:
    """Chooses the model to deploy.

    This is `deploy.candidate` if it is set, else the recommended candidate, else the base. A
    candidate that may not ship is chosen only if the profile names it; `require_shippable` then
    asks for a reason.

    Raises:
        FlowError: `deploy.candidate` is not in the comparison.
    """
    named = flow.config.deploy.candidate
    name = named or recommended(comparison)
    if name is None:
        verdicts = ", ".join(f"{c.name}: {c.verdict}" for c in comparison.candidates)
        why = f"No candidate may ship ({verdicts}), so the base model is deployed."
        return Choice(name=BASE, verdict=None, explicit=False, why=why)
    candidate = comparison.candidate(name)
    reasons = " ".join(candidate.reasons)
    if named is None:
        why = f"Of the candidates whose verdict is SHIP, {name} is the recommended one. {reasons}"
    elif candidate.verdict == "SHIP":
        why = f"The profile names {name} (deploy.candidate), and its verdict is SHIP. {reasons}"
    else:
        why = (
            f"The profile names {name} (deploy.candidate), though its verdict is "
            f"{candidate.verdict}. {reasons}"
        )
    return Choice(name=name, verdict=candidate.verdict, explicit=named is not None, why=why)
