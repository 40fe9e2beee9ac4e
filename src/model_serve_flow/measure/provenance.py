"""What every measurement records of itself beside its figures,
and whether one that lies there is that of today.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeVar

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts, Measurement, protocol_hash
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.serve.kernels import require_expected_kernel
from model_serve_flow.serve.server import Server
from model_serve_flow.system.files import read_result

Result = TypeVar("Result", bound=Measurement)


def proven_facts(server: Server) -> EngineFacts:
    """What the engine says of itself; FlowError if the kernel that served is not the
    checkpoint's.
    """
    facts = server.facts()
    require_expected_kernel(facts, server.model_name, server.folder)
    return facts


def require_arguments(server: Server, protocol: dict[str, Any]) -> None:
    """FlowError if the server was started with other arguments than the measurement's protocol
    says.
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
    """The result an earlier run left at `path`, if it is of this model,
    this protocol and these kernels.

    What is kept is said in a printed line. The arguments are those of `earlier`.

    Args:
        protocol: that it would be measured with.

    Returns:
        None if it has to be measured.

    Raises:
        FlowError: the checkpoint is gone.
    """
    found = earlier(path, kind, server, facts)
    if found is None or found.protocol != protocol:
        return None
    say_kept(path)
    return found


def say_kept(path: Path) -> None:
    """Prints that a result stays as it is."""
    print(f"kept: {_shown(path)}, measured before")


def earlier(path: Path, kind: type[Result], server: Server, facts: EngineFacts) -> Result | None:
    """The result an earlier run left at `path`, if it is of this model and these kernels,
    by whatever protocol.

    One that is damaged is said in a printed line.

    Args:
        path: `<workspace>/results/<model>/<name>.json`.
        kind: the type of the result.
        server: what would be measured.
        facts: of its engine now, from `proven_facts`.

    Returns:
        None if nothing is stored there, it cannot be read, or it is of another model or engine.

    Raises:
        FlowError: the checkpoint is gone.
    """
    if not path.exists():
        return None
    try:
        found = read_result(path, kind)
    except FlowError as error:
        print(f"damaged: {_shown(path)}, measured again and replaced. {error.problem}")
        return None
    now, then = ((f.version, f.quantization, f.kernels) for f in (facts, found.engine))
    same = found.model == describe_model(server.model_name, server.folder)
    return found if same and now == then else None


def _shown(path: Path) -> Path:
    return path.relative_to(path.parents[2])


def provenance(
    server: Server, facts: EngineFacts, protocol: dict[str, Any], started: float
) -> dict[str, Any]:
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
