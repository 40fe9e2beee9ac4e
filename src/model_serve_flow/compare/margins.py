"""The seal on the margins: a margin that is chosen after the results proves nothing,
so a later change is shown.
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
PLAN = frozenset({"looks", ITEMS, ANSWERS})  # a change of these is a look that was not planned


def seal_margins(flow: Flow) -> dict[str, Any]:
    """Writes the margins and their digest into the manifest, before the base is measured;
    returns that section.

    A seal that is there stays while any accuracy result is: only where nothing is measured yet are
    margins free to change. Where results are there without a seal, the seal says that it came after
    them.
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
    """What the manifest says of the profile's margins; None if they were never sealed.

    A seal whose digest is not that of its values was edited: then every value counts as changed.
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
    """Whether the margins were fixed in time, in a sentence."""
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

    A list of tasks becomes text. With planned looks the numbers of items and of answers to an item
    belong to the plan too.
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
