"""What every measurement records of itself beside its figures, and whether one that lies there is that of today."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeVar

from model_serve_flow.errors import FlowError
from model_serve_flow.kernels import require_expected_kernel
from model_serve_flow.results import EngineFacts, Measurement, protocol_hash
from model_serve_flow.serving import Server
from model_serve_flow.workspace import describe_model, read_result

Result = TypeVar("Result", bound=Measurement)


def proven_facts(server: Server) -> EngineFacts:
    """What the engine says of itself; FlowError if the kernel that served is not the checkpoint's."""
    facts = server.facts()
    require_expected_kernel(facts, server.model_name, server.folder)
    return facts


def require_arguments(server: Server, protocol: dict[str, Any]) -> None:
    """FlowError if the server was started with other arguments than the measurement's protocol says."""
    theirs, ours = server.arguments, protocol["engine_arguments"]
    if theirs is not None and list(theirs) != ours:
        odd = sorted({*theirs} ^ {*ours})
        raise FlowError(
            f"The server of {server.model_name} does not run as this measurement needs it: {' '.join(odd)} is on one "
            "side only.",
            "Start it for its purpose: serve(flow, name, purpose='accuracy') or purpose='performance'.",
        )


def kept(path: Path, kind: type[Result], server: Server, facts: EngineFacts, protocol: dict[str, Any]) -> Result | None:
    """The result an earlier run left at `path`, if it is of this model, this protocol and these kernels.

    What is kept, or is damaged, is said in a printed line.

    Args:
        path: `<workspace>/results/<model>/<name>.json`.
        kind: the type of the result.
        server: what would be measured.
        facts: of its engine now, from `proven_facts`.
        protocol: that it would be measured with.

    Returns:
        None if it has to be measured: nothing lies there, it cannot be read, or it is of something else.

    Raises:
        FlowError: the checkpoint is gone.
    """
    if not path.exists():
        return None
    shown = path.relative_to(path.parents[2])
    try:
        found = read_result(path, kind)
    except FlowError as error:
        print(f"damaged: {shown}, measured again and replaced. {error.problem}")
        return None
    now, then = ((f.version, f.quantization, f.kernels) for f in (facts, found.engine))
    same = found.protocol == protocol and found.model == describe_model(server.model_name, server.folder)
    if not same or now != then:
        return None
    print(f"kept: {shown}, measured before; delete it to measure again")
    return found


def provenance(server: Server, facts: EngineFacts, protocol: dict[str, Any], started: float) -> dict[str, Any]:
    """The fields that `Measurement` asks of every result.

    Args:
        server: where the model was measured.
        facts: of its engine, from `proven_facts`.
        protocol: all that must be equal for two results to be comparable.
        started: `time.monotonic()` at the start of the measurement.

    Raises:
        FlowError: the checkpoint is gone.
    """
    return {
        "model": describe_model(server.model_name, server.folder),
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
        "engine": facts,
        "seconds": time.monotonic() - started,
    }
