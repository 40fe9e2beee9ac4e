"""Seals the margins before anything is measured, and shows every later change.

A margin that is chosen after the results proves nothing.
"""

from __future__ import annotations

from typing import Any

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest, update_manifest
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import MarginSeal
from model_serve_flow.flow.results.measured import protocol_hash
from model_serve_flow.system.files import now

SECTION = "margins"
ITEMS, ANSWERS = "accuracy.limit", "accuracy.repeats.count"
PLAN = frozenset({"looks", ITEMS, ANSWERS})  # changing these adds an unplanned look


def seal_margins(flow: Flow) -> dict[str, Any]:
    """Writes the margins and their digest into the manifest, before the base is measured.

    An existing seal is kept while there is any accuracy result: margins may change only where
    nothing is measured yet. If results exist without a seal, the new seal says that it came after
    them.

    Returns:
        The section of the manifest that holds the seal.
    """
    manifest, results = (
        read_manifest(flow.workspace),
        flow.workspace.root.glob("results/*/accuracy*.json"),
    )
    measured = next(results, None) is not None
    if measured and SECTION in manifest:
        return manifest[SECTION]
    values = _values(flow.config)
    seal = {
        "values": values,
        "sha256": protocol_hash(values),
        "at": now(),
        "before_measuring": not measured,
    }
    return update_manifest(flow.workspace, replace=True, **{SECTION: seal})[SECTION]


def check_seal(flow: Flow) -> MarginSeal | None:
    """Compares the profile's margins with the seal in the manifest.

    If the digest of a seal does not match its values, the seal was edited: then every value counts
    as changed.

    Returns:
        None if the margins were never sealed.
    """
    seal = read_manifest(flow.workspace).get(SECTION)
    if seal is None:
        return None
    sealed, current = seal["values"], _values(flow.config)
    if protocol_hash(sealed) != seal["sha256"]:
        sealed = {}
    names = sorted(sealed.keys() | current.keys())
    changed = {
        name: (sealed.get(name), current.get(name))
        for name in names
        if sealed.get(name) != current.get(name)
    }
    return MarginSeal(at=seal["at"], before_measuring=seal["before_measuring"], changed=changed)


def seal_sentence(seal: MarginSeal | None) -> str:
    """Says whether the margins were fixed before the measurement."""
    if seal is None:
        return "The margins are the profile's. It is not recorded when they were fixed."
    if seal.changed:
        names = ", ".join(
            f"{name} from {_text(old)} to {_text(new)}" for name, (old, new) in seal.changed.items()
        )
        return (
            f"The margins were changed after the measurement had begun: {names}. They prove less "
            "than margins kept."
        )
    if not seal.before_measuring:
        return (
            "The margins are the profile's. They were recorded only when results were already "
            "there."
        )
    return "The margins are the profile's and were fixed before anything was measured."


def _values(config: FlowConfig) -> dict[str, float | str | None]:
    """Returns the `verdict` section without its rationale, which decides nothing.

    A list of tasks becomes text. If looks are planned, the number of items and the number of
    answers per item belong to the plan too.
    """
    found = config.verdict.model_dump(mode="json", exclude={"rationale"})
    inner = {f"secondary.{key}": value for key, value in found.pop("secondary", {}).items()}
    values = {
        key: ", ".join(sorted(value)) if isinstance(value, list) else value
        for key, value in {**found, **inner}.items()
    }
    if config.verdict.looks == 1:
        return values
    repeats = config.accuracy.repeats
    return {**values, ITEMS: config.accuracy.limit, **({ANSWERS: repeats.count} if repeats else {})}


def _text(value: float | str | None) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else f"{value:g}"
