"""Writes and checks the KServe manifests of the chosen model."""

from __future__ import annotations

import hashlib
import json
import math
import re
from importlib import resources
from typing import Any

from model_serve_flow.deploy.cluster import (
    POD_ANNOTATIONS,
    PORT,
    gpu_amount,
    metadata,
    pod_settings,
    require_safe,
    service_annotations,
)
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import BaseComparison, CandidateComparison, Comparison
from model_serve_flow.flow.results.measured import BASE, Model
from model_serve_flow.serve import vllm_main as vllm
from model_serve_flow.serve.engine import DEPLOY
from model_serve_flow.serve.vllm import engine_arguments, engine_environment
from model_serve_flow.system.hardware import usable_cores
from model_serve_flow.system.sizes import GIB

MODEL_FOLDER = "/mnt/models"  # where KServe puts the checkpoint, whatever the storage URI
SECRET_KEY = "api-key"
NAME_LENGTH = 40  # KServe adds "-predictor" and the like, and a DNS label ends at 63
KINDS = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}


def resource_name(config: FlowConfig, name: str) -> str:
    """Returns the name of a model's Kubernetes resources, which clients also use as its name.

    The name is a DNS label of at most 40 characters.
    """
    whole = f"{config.model.name}-{name}"
    label = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    label = label if label[:1].isalpha() else f"m-{label}"
    if len(label) <= NAME_LENGTH:
        return label
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{label[: NAME_LENGTH - 9].rstrip('-')}-{digest}"


def serving_runtime(flow: Flow, name: str) -> dict[str, Any]:
    """Returns the KServe ServingRuntime, which starts vLLM as it was measured.

    Only what `deploy.differences` lists is other than in the measurement of performance.

    Raises:
        FlowError: a value of `deploy` or `engine` cannot be written into a manifest.
    """
    config = flow.config
    require_safe(config)
    resource = resource_name(config, name)
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(config, resource),
        "spec": {
            "annotations": dict(POD_ANNOTATIONS),
            "multiModel": False,
            "supportedModelFormats": [{"name": "vLLM", "autoSelect": False}],
            "containers": [_container(config, resource)],
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": "8Gi"}},
                {
                    "name": "shm",
                    "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shm_gib(config)}Gi"},
                },
            ],
        },
    }


def inference_service(
    flow: Flow,
    model: Model,
    comparison: Comparison,
    *,
    cores: int | None = None,
    run_as_user: int | None = None,
) -> dict[str, Any]:
    """Returns the KServe InferenceService, which serves the model.

    It runs on `serving_runtime`, or on the runtime of the cluster that `deploy.runtime` names. The
    latter gets the engine's flags and variables from here, after its own.

    Args:
        model: the model to deploy, as `describe_model` finds it on the disk.
        comparison: gives the memory that the model used when it was measured.
        cores: CPU cores; by default those that this process may use (CPU), or 4 (GPU).
        run_as_user: user id. Plain Kubernetes needs it, because it refuses the image's user, root.
            Omit it on OpenShift, which gives each namespace its own ids.

    Raises:
        FlowError: a value of `deploy` or `engine` cannot be written into a manifest, or the model
            was not compared.
    """
    config = flow.config
    require_safe(config)
    resource = resource_name(config, model.name)
    figures = comparison.base if model.name == BASE else comparison.candidate(model.name)
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            **metadata(config, resource),
            "annotations": service_annotations(config, model),
        },
        "spec": {
            "predictor": {
                **_predictor(config, run_as_user),
                "model": {
                    "modelFormat": {"name": "vLLM"},
                    **_runtime(config, resource),
                    "storageUri": config.deploy.storage_uri,
                    "resources": _resources(config, figures, cores),
                },
            }
        },
    }


def _predictor(config: FlowConfig, run_as_user: int | None) -> dict[str, Any]:
    """Returns the settings of the pod."""
    user = {} if run_as_user is None else {"runAsUser": run_as_user, "fsGroup": run_as_user}
    return {
        "minReplicas": 1,
        "maxReplicas": 1,
        "automountServiceAccountToken": False,
        # Otherwise a Service called "vllm" would set VLLM_PORT in the pod, a variable that vLLM
        # reads.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **user,
        },
        **pod_settings(config),
    }


def _runtime(config: FlowConfig, resource: str) -> dict[str, Any]:
    """Returns the name of the runtime, and what the cluster's own runtime has to be told."""
    if config.deploy.runtime is None:
        return {"runtime": resource}
    return {
        "runtime": config.deploy.runtime,
        "args": _kept(["--served-model-name", resource, *engine_arguments(config, DEPLOY)]),
        "env": _environment(engine_environment(config), config, resource),
    }


def _kept(arguments: list[str]) -> list[str]:
    """Returns the arguments so that Kubernetes, which replaces $(NAME) in them, keeps them."""
    return [argument.replace("$", "$$") for argument in arguments]


def validate_manifest(document: dict[str, Any]) -> None:
    """Checks a manifest against the schema of KServe's own SDK (see `tools/kserve_schema.py`).

    Raises:
        FlowError: the kind or version is unknown, a field is unknown or missing, or a value has the
            wrong type.
    """
    from jsonschema import Draft202012Validator

    model = KINDS.get((document.get("apiVersion"), document.get("kind")))
    if model is None:
        raise FlowError(f"Unknown manifest: {document.get('apiVersion')} {document.get('kind')}.")
    text = (
        resources.files("model_serve_flow.deploy")
        .joinpath("kserve.json")
        .read_text(encoding="utf-8")
    )
    validator = Draft202012Validator({**json.loads(text), "$ref": f"#/$defs/{model}"})
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    if problems:
        raise FlowError(f"The {document['kind']} is not valid:\n  " + "\n  ".join(sorted(problems)))


def _container(config: FlowConfig, resource: str) -> dict[str, Any]:
    where = [
        "--model",
        MODEL_FOLDER,
        "--served-model-name",
        resource,
        "--host",
        "0.0.0.0",
        "--port",
        str(PORT),
    ]
    return {
        "name": "kserve-container",  # the name KServe looks for
        "image": config.deploy.image,
        "command": ["python3", "-m", vllm.MODULE],
        "args": _kept([*where, *engine_arguments(config, DEPLOY)]),
        "env": _environment(
            {**engine_environment(config), **scratch_environment()}, config, resource
        ),
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _probe(period=10, failures=math.ceil(config.engine.startup_seconds / 10)),
        "readinessProbe": _probe(period=10, failures=3),
        "livenessProbe": _probe(period=30, failures=3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def scratch_environment() -> dict[str, str]:
    """Returns variables that put every cache of the engine under /tmp, the one writable folder.

    They work for any user id.
    """
    caches = {
        "VLLM_CACHE_ROOT": "vllm",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "HF_HOME": "hf",
    }
    # torch asks for the user's name, and an arbitrary user id has none in /etc/passwd.
    return {
        "HOME": "/tmp",
        "USER": "vllm",
        **{name: f"/tmp/{folder}" for name, folder in caches.items()},
    }


def _environment(
    variables: dict[str, str], config: FlowConfig, resource: str
) -> list[dict[str, Any]]:
    """Returns the variables, and the key unless OpenShift asks for its own token."""
    plain = [{"name": name, "value": value} for name, value in variables.items()]
    if config.deploy.auth == "openshift":
        return plain
    secret = {"name": f"{resource}-api-key", "key": SECRET_KEY}
    return [*plain, {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": secret}}]


def _probe(period: int, failures: int) -> dict[str, Any]:
    get = {"path": "/health", "port": PORT, "scheme": "HTTP"}
    return {
        "httpGet": get,
        "periodSeconds": period,
        "timeoutSeconds": 10,
        "failureThreshold": failures,
    }


def _shm_gib(config: FlowConfig) -> int:
    return 2 if config.device == "gpu" else 1


def _resources(
    config: FlowConfig, figures: BaseComparison | CandidateComparison, cores: int | None
) -> dict[str, dict[str, str]]:
    """Computes the resources of the pod; its requests equal its limits.

    So the server is never throttled or evicted under load, which would change its speed.

    - CPU memory: 1.25 x the measured peak. If the peak is unknown: 2 x the weights + the KV cache +
      4 GiB.
    - GPU memory: the measured peak is device memory. The host needs the weights once, while it
      reads them, + 8 GiB.
    - Both: + shared memory.
    """
    peak, size = figures.memory.peak_bytes, figures.size_bytes
    if config.device == "gpu":
        need, cores, device = size + 8 * GIB, cores or 4, gpu_amount(config)
    else:
        need = 1.25 * peak if peak else 2 * size + (4 + (config.engine.kv_cache_gib or 4)) * GIB
        cores, device = cores or usable_cores(), {}
    amounts = {
        "cpu": str(cores),
        "memory": f"{math.ceil(need / GIB) + _shm_gib(config)}Gi",
        **device,
    }
    return {"requests": dict(amounts), "limits": dict(amounts)}
