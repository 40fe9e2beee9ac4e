"""The seal on the margins: a margin that is chosen after the results proves nothing, so a later change is shown."""

from __future__ import annotations

from typing import Any

from model_serve_flow.config import FlowConfig
from model_serve_flow.flow import Flow
from model_serve_flow.manifest import read_manifest, update_manifest
from model_serve_flow.results import MarginSeal, protocol_hash
from model_serve_flow.workspace import now

SECTION = "margins"
ITEMS = "accuracy.limit"
PLAN = frozenset({"looks", ITEMS})  # a change of these is a look that was not planned


def seal_margins(flow: Flow) -> dict[str, Any]:
    """Writes the margins and their digest into the manifest, before the base is measured; returns that section.

    A seal that is there stays while any accuracy result is: only where nothing is measured yet are margins free to
    change. Where results are there without a seal, the seal says that it came after them.
    """
    manifest, results = read_manifest(flow.workspace), flow.workspace.root.glob("results/*/accuracy*.json")
    measured = next(results, None) is not None
    if measured and SECTION in manifest:
        return manifest[SECTION]
    values = _values(flow.config)
    seal = {"values": values, "sha256": protocol_hash(values), "at": now(), "before_measuring": not measured}
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
    changed = {name: (sealed.get(name), current.get(name)) for name in names if sealed.get(name) != current.get(name)}
    return MarginSeal(at=seal["at"], before_measuring=seal["before_measuring"], changed=changed)


def seal_sentence(seal: MarginSeal | None) -> str:
    """Whether the margins were fixed in time, in a sentence."""
    if seal is None:
        return "The margins are the profile's. It is not recorded when they were fixed."
    if seal.changed:
        names = ", ".join(f"{name} from {_text(old)} to {_text(new)}" for name, (old, new) in seal.changed.items())
        return f"The margins were changed after the measurement had begun: {names}. They prove less than margins kept."
    if not seal.before_measuring:
        return "The margins are the profile's. They were recorded only when results were already there."
    return "The margins are the profile's and were fixed before anything was measured."


def _values(config: FlowConfig) -> dict[str, float | None]:
    """The `verdict` section without its rationale, which decides nothing; with planned looks also how many items."""
    values = config.verdict.model_dump(
        mode="json", exclude={"rationale"} | ({"looks"} if config.verdict.looks == 1 else set())
    )
    return values if config.verdict.looks == 1 else {**values, ITEMS: config.accuracy.limit}


def _text(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
