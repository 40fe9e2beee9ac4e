"""Seals the margins before anything is measured, and shows every later change.

A margin that is chosen after the results proves nothing.
"""

from __future__ import annotations

from typing import Any

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest, update_manifest
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import MarginSeal
from model_serve_flow.flow.results.measured import BASE, protocol_hash
from model_serve_flow.system.files import now

SECTION = "margins"
LOOKS, ITEMS, ANSWERS = "looks", "accuracy.limit", "accuracy.repeats.count"
PACKAGED = "accuracy.packaged."  # begins the numbers of items of packaged tasks


def seal_margins(flow: Flow) -> dict[str, Any]:
    """Writes the margins and their digest into the manifest, before the base is measured.

    An existing seal is kept while there is any accuracy result: margins may change only where
    nothing is measured yet. The plan of looks and items may change until a candidate is measured.
    If results exist without a seal, the new seal says that it came after them.

    Returns:
        The section of the manifest that holds the seal.
    """
    manifest, values = read_manifest(flow.workspace), _values(flow.config)
    models = {path.parent.name for path in flow.workspace.root.glob("results/*/accuracy*.json")}
    seal = {"values": values, "at": now(), "before_measuring": not models}
    if models and SECTION in manifest:
        seal = manifest[SECTION]
        if models - {BASE} or protocol_hash(seal["values"]) != seal["sha256"]:
            return seal
        margins = {name: value for name, value in seal["values"].items() if not of_plan(name)}
        plan = {name: value for name, value in values.items() if of_plan(name)}
        seal = {**seal, "values": margins | plan}
    seal["sha256"] = protocol_hash(seal["values"])
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
    else:  # an earlier version left out one look, and sealed fewer numbers of items
        plan = {name: value for name, value in current.items() if of_plan(name)}
        sealed = {**plan, LOOKS: 1, **sealed}
    names = sorted(sealed.keys() | current.keys())
    changed = {
        name: (sealed.get(name), current.get(name))
        for name in names
        if sealed.get(name) != current.get(name)
    }
    return MarginSeal(at=seal["at"], before_measuring=seal["before_measuring"], changed=changed)


def of_plan(name: str) -> bool:
    """Tells whether a sealed value belongs to the plan: changing it adds an unplanned look."""
    return name in (LOOKS, ITEMS, ANSWERS) or name.startswith(PACKAGED)


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

    A list of tasks becomes text. The number of items and the number of answers per item belong to
    the plan too.
    """
    found = config.verdict.model_dump(mode="json", exclude={"rationale"})
    inner = {f"secondary.{key}": value for key, value in found.pop("secondary", {}).items()}
    values = {
        key: ", ".join(sorted(value)) if isinstance(value, list) else value
        for key, value in {**found, **inner}.items()
    }
    repeats, packaged = config.accuracy.repeats, config.accuracy.packaged
    counts = {} if packaged is None else packaged.model_dump(mode="json")
    return {
        **values,
        LOOKS: config.verdict.looks,
        ITEMS: config.accuracy.limit,
        ANSWERS: repeats.count if repeats else None,
        **{PACKAGED + name: count for name, count in counts.items() if isinstance(count, int)},
    }


def _text(value: float | str | None) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else f"{value:g}"
