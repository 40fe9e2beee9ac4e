"""Records what a measurement was made of, and checks whether an earlier result is still valid."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeVar

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts, Measurement, protocol_hash
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import read_result

Result = TypeVar("Result", bound=Measurement)


def proven_facts(server: Server) -> EngineFacts:
    """Returns what the engine proves, after checking that the proof suffices.

    Raises:
        FlowError: the engine proves too little, or did not serve the checkpoint's own weights.
    """
    facts = server.facts()
    server.engine.require_proof(facts, server.model_name, server.folder)
    return facts


def require_arguments(server: Server, protocol: dict[str, Any]) -> None:
    """Checks that the server was started with the engine arguments of the protocol.

    Raises:
        FlowError: the arguments differ; names the arguments that are on one side only.
    """
    theirs, ours = server.arguments, protocol["engine_arguments"]
    if theirs is not None and list(theirs) != ours:
        odd = sorted({*theirs} ^ {*ours})
        raise FlowError(
            f"The server of {server.model_name} does not run as this measurement needs it: "
            f"{' '.join(odd)} is on one side only.",
            "Start it for its purpose: serve(flow, name, purpose='accuracy') or "
            "purpose='performance'.",
        )


def kept(
    path: Path, kind: type[Result], server: Server, facts: EngineFacts, protocol: dict[str, Any]
) -> Result | None:
    """Returns an earlier result if model, protocol and kernels are the same, and prints that.

    Args:
        path, kind, server, facts: as for `earlier`.
        protocol: the protocol of the measurement that would be made now.

    Returns:
        None if a new measurement is needed.

    Raises:
        FlowError: the checkpoint is missing.
    """
    found = earlier(path, kind, server, facts)
    if found is None or found.protocol != protocol:
        return None
    say_kept(path)
    return found


def say_kept(path: Path) -> None:
    """Prints that an earlier result is kept."""
    print(f"kept: {_shown(path)}, measured before")


def earlier(path: Path, kind: type[Result], server: Server, facts: EngineFacts) -> Result | None:
    """Returns an earlier result if model and kernels are the same, whatever its protocol.

    If the file is damaged, the function prints this and returns None.

    Args:
        path: `<workspace>/results/<model>/<name>.json`.
        kind: the type of the result.
        server: the server of the model that would be measured.
        facts: the facts of its engine now, from `proven_facts`.

    Returns:
        None if the file is missing or unreadable, or is of another model or engine.

    Raises:
        FlowError: the checkpoint is missing.
    """
    if not path.exists():
        return None
    try:
        found = read_result(path, kind)
    except FlowError as error:
        print(f"damaged: {_shown(path)}, measured again and replaced. {error.problem}")
        return None
    now, then = ((f.name, f.version, f.quantization, f.kernels) for f in (facts, found.engine))
    same = found.model == describe_model(server.model_name, server.folder)
    return found if same and now == then else None


def _shown(path: Path) -> Path:
    return path.relative_to(path.parents[2])


def provenance(
    server: Server, facts: EngineFacts, protocol: dict[str, Any], started: float
) -> Measurement:
    """Records what every result of a measurement has.

    Args:
        server: the server on which the model was measured.
        facts: the facts of its engine, from `proven_facts`.
        protocol: everything that must be equal for two results to be comparable.
        started: `time.monotonic()` at the start of the measurement, in seconds.

    Raises:
        FlowError: the checkpoint is missing.
    """
    return Measurement(
        model=describe_model(server.model_name, server.folder),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        engine=facts,
        seconds=time.monotonic() - started,
    )
