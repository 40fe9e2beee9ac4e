"""Names what differs between the server that was measured and the server that is deployed."""

from __future__ import annotations

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.serve.engine import DEPLOY, PERFORMANCE
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.system.records import Record


class SettingDifference(Record):
    """One setting of the engine or its surroundings, as measured and as deployed."""

    setting: str
    measured: str
    deployed: str
    why: str


def deployed_differences(config: FlowConfig) -> tuple[SettingDifference, ...]:
    """Lists what differs between the measured server and the manifests of the profile."""
    engine = engine_of(config)
    same = engine.arguments(PERFORMANCE) == engine.arguments(DEPLOY)
    found = [] if same else [PREFIX_CACHE]
    if config.deploy.auth == "openshift":
        found.append(AUTH)
    if config.deploy.runtime is not None:
        found.append(_runtime(config.deploy.runtime))
    return tuple(found)


PREFIX_CACHE = SettingDifference(
    setting="prefix cache",
    measured="off for speed (--no-enable-prefix-caching), on for accuracy",
    deployed="on, vLLM's default (no flag)",
    why="The load repeats its prompts, so a cache would flatter the measured speed. Requests "
    "of users that begin alike are answered faster than measured.",
)
AUTH = SettingDifference(
    setting="who asks for the key",
    measured="vLLM, by its own key",
    deployed="OpenShift AI, by a token of the cluster, before vLLM",
    why="deploy.auth is openshift.",
)


def _runtime(name: str) -> SettingDifference:
    return SettingDifference(
        setting="image and start of the server",
        measured="the vLLM of this flow's environment",
        deployed=f"those of the cluster's ServingRuntime {name}, with the measured flags after its "
        "own",
        why="deploy.runtime names it: compare its version of vLLM with the one that was measured.",
    )
